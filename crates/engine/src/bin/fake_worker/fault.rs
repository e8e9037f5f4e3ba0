//! The names of the faults.

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal),+ $(,)?) => {
        /// How it fails.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Fault { $($(#[$doc])* $fault),+ }

        impl Fault {
            pub(crate) fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Fault::$fault),)+ _ => None }
            }
        }
    };
}

faults! {
    /// Not at all. It leaves, as any worker, when its stdin ends.
    Good = "good",
    /// Says hello, then leaves with status 3.
    ExitsBeforeReady = "exits_before_ready",
    /// A traceback on stderr and status 1, before anything was said.
    DiesAtImport = "dies_at_import",
    /// Never says anything.
    NeverSaysHello = "never_says_hello",
    /// Says hello and nothing more.
    NeverReady = "never_ready",
    /// A line of text among the frames.
    PrintsToStdout = "prints_to_stdout",
    /// Leaves in the middle of a line.
    HalfALine = "half_a_line",
    /// Speaks the next major version.
    WrongMajor = "wrong_major",
    /// Ready, and never heard of again: no beats either.
    Silent = "silent",
    /// Ten thousand lines to the log and to stderr, then good.
    FloodOfLogs = "flood_of_logs",
    /// No run has memory enough.
    OutOfMemory = "out_of_memory",
    /// The first run has not.
    OutOfMemoryOnce = "out_of_memory_once",
    /// SIGKILL at half the steps.
    KilledMidStep = "killed_mid_step",
    /// The same, unless the marker file is there.
    KilledOnce = "killed_once",
    /// Goes on after `cancel`.
    IgnoresCancel = "ignores_cancel",
    /// Cannot be ended by SIGTERM, and is stuck.
    IgnoresTerminate = "ignores_terminate",
    /// Leaves a `sleep` in its group, and its pipes with it.
    LeavesAGrandchild = "leaves_a_grandchild",
    /// Stuck in its first step; beats go on, `cancel` is not read.
    NeverFinishes = "never_finishes",
    /// Makes no progress, but heeds `cancel`.
    Stalls = "stalls",
    /// Announces a blob of 300 MiB.
    OversizeFrame = "oversize_frame",
    /// Results of an older attempt come first.
    StaleAttempt = "stale_attempt",
    /// Every run fails.
    Fails = "fails",
    /// Every load fails.
    ModelLoad = "model_load",
    /// Stuck in every load, after the first progress of it; beats go on.
    LoadHangs = "load_hangs",
    /// Loses its device at the first run.
    LosesItsDevice = "loses_its_device",
    /// Good; the name is for the test of what every worker does.
    ExitsOnStdinEof = "exits_on_stdin_eof",
}
