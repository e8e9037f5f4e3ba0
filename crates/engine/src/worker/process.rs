//! The only place that starts processes and sends signals.
//!
//! Each process is the leader of a group of its own and has a keeper: a thread that starts it, waits for it, kills
//! what is left of its group and reaps it. The order matters: the leader's number stays taken until the reap, so a
//! signal to the group can never meet a stranger.
//!
//! The keeper also has to be a thread of its own because the parent-death signal is sent when the *thread* that
//! forked ends, not when its process does. A runtime's thread may end while the server goes on; the keeper outlives
//! the child by construction.

#![expect(
    unsafe_code,
    reason = "code between fork and exec, and waiting for a pidfd; the contract stands at each block"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// A picture of a megapixel goes through the pipe in three pieces instead of fifty.
#[cfg(target_os = "linux")]
const PIPE_BYTES: usize = 1 << 20;

/// What to start.
#[derive(Debug)]
pub(super) struct Program {
    /// The file.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) args: Vec<String>,
    /// Environment on top of our own.
    pub(super) env: Vec<(String, String)>,
}

/// How a process ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// None where nobody saw it or the system would not say.
    status: Option<ExitStatus>,
    /// Of its group, what was killed but has not quite ended yet.
    dying: Vec<OwnedFd>,
}

impl Ended {
    /// The signal that ended it.
    pub(super) fn signal(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    /// For a person.
    pub(super) fn describe(&self) -> String {
        let code = self.status.and_then(|status| status.code());
        match (code, self.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown exit status".to_owned(),
        }
    }

    /// Waits until `by` for the rest of the group. A killed process closes its pipes a little before it lets go of
    /// everything else, so the pipes' end is not enough.
    pub(super) async fn rest_of_group(&mut self, by: Instant) {
        for dying in self.dying.drain(..) {
            // A pidfd is readable when its process has ended.
            // SAFETY: the pidfd is moved into the `AsyncFd`, which is dropped here before the descriptor is closed, and
            // nothing else closes or replaces it.
            let registered = unsafe { AsyncFd::register_with_interest(dying, Interest::READABLE) };
            let Ok(dying) = registered else {
                continue;
            };
            if timeout_at(by, dying.readable()).await.is_err() {
                tracing::warn!("A process of a worker's group was killed and has not ended");
            }
        }
    }
}

/// A running process. Dropped, it takes its whole group with it.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    group: Arc<Group>,
}

/// The three pipes of a process, not yet async, and the news of its end.
#[derive(Debug)]
pub(super) struct Ends {
    /// What it reads.
    pub(super) stdin: ChildStdin,
    /// What it says.
    pub(super) stdout: ChildStdout,
    /// What it grumbles.
    pub(super) stderr: ChildStderr,
    /// Comes after its group was killed and it was reaped.
    pub(super) ended: oneshot::Receiver<Ended>,
}

/// Signals and the reap exclude each other.
#[derive(Debug)]
struct Group {
    leader: Option<Pid>,
    reap: Mutex<Reap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reap {
    Pending,
    Done,
}

impl Process {
    /// Starts `program` in a group of its own. `then` runs on the keeper's thread after the reap,
    /// before the end is told.
    pub(super) async fn start(
        program: Program,
        then: impl FnOnce(u32) + Send + 'static,
    ) -> io::Result<(Process, Ends)> {
        let (started, start) = oneshot::channel();
        let keeper = move || {
            let (mut child, process, ends, tell) = match spawn(program) {
                Ok(spawned) => spawned,
                Err(error) => {
                    // Nobody waits any more when the runtime is gone, and there is nothing to keep.
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let (group, pid) = (process.group.clone(), process.pid);
            // Where nobody waits, the process comes back in the error, is dropped, and so is killed.
            drop(started.send(Ok((process, ends))));
            let ended = group.keep(&mut child);
            then(pid);
            // A driver that is gone does not ask.
            let _ = tell.send(ended);
        };
        thread::Builder::new()
            .name("worker-keeper".to_owned())
            .spawn(keeper)?;
        start
            .await
            .map_err(|_| io::Error::other("the keeper's thread ended"))?
    }

    /// The leader's id, which is the group's too.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks the whole group to leave.
    pub(super) fn terminate(&self) {
        self.group.signal(Signal::TERM);
    }

    /// Makes the whole group leave.
    pub(super) fn kill(&self) {
        self.group.signal(Signal::KILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Group {
    fn signal(&self, signal: Signal) {
        let reap = self.reap.lock().unwrap_or_else(PoisonError::into_inner);
        if *reap == Reap::Pending
            && let Some(leader) = self.leader
        {
            // It fails only where the group is already gone.
            let _ = kill_process_group(leader, signal);
        }
    }

    /// Waits for the leader's end, kills the rest of the group, reaps.
    fn keep(&self, child: &mut Child) -> Ended {
        if let Some(leader) = self.leader {
            let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(
                waitid(WaitId::Pid(leader), unreaped),
                Err(rustix::io::Errno::INTR)
            ) {}
        }
        self.signal(Signal::KILL);
        let mut reap = self.reap.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.wait().ok();
        *reap = Reap::Done;
        Ended {
            status,
            dying: self.leader.map(dying).unwrap_or_default(),
        }
    }
}

/// The members that are left of a group whose leader was reaped and which was killed: none of them can fork any more.
#[cfg(target_os = "linux")]
fn dying(group: Pid) -> Vec<OwnedFd> {
    // Most often nothing is left, and one call says so.
    if rustix::process::test_kill_process_group(group).is_err() {
        return Vec::new();
    }
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let members = processes.flatten().filter_map(|process| {
        let pid = process
            .file_name()
            .to_str()?
            .parse()
            .ok()
            .and_then(Pid::from_raw)?;
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        // The name in parentheses may hold anything; then come state, parent and group.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let in_group = fields.nth(1)?.parse() == Ok(group.as_raw_nonzero().get());
        (in_group && !matches!(state, "Z" | "X")).then_some(pid)
    });
    members
        .filter_map(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        .collect()
}

/// Elsewhere the end of the pipes has to do.
#[cfg(not(target_os = "linux"))]
fn dying(_group: Pid) -> Vec<OwnedFd> {
    Vec::new()
}

type Spawned = (Child, Process, Ends, oneshot::Sender<Ended>);

fn spawn(program: Program) -> io::Result<Spawned> {
    let Program { program, args, env } = program;
    let mut command = Command::new(program);
    command.args(args).envs(env).process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn()?;
    let pid = child.id();
    let leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = Process {
        pid,
        group: Arc::new(Group {
            leader,
            reap: Mutex::new(Reap::Pending),
        }),
    };
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::Error::other("a pipe is missing"));
    };
    #[cfg(target_os = "linux")]
    for result in [
        rustix::pipe::fcntl_setpipe_size(&stdin, PIPE_BYTES),
        rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, "A worker's pipe keeps its size");
        }
    }
    let (tell, ended) = oneshot::channel();
    Ok((
        child,
        process,
        Ends {
            stdin,
            stdout,
            stderr,
            ended,
        },
        tell,
    ))
}

/// SIGKILL for the child when the keeper's thread, and so this whole process, ends.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = Pid::from_raw(std::process::id().cast_signed());
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Had the parent died before that call, no signal would ever come.
        if rustix::process::getppid() != parent {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::SRCH.raw_os_error(),
            ));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe code may run. The closure makes two bare system calls
    // (prctl and getppid) and builds errors from a number; it allocates nothing, takes no lock and cannot panic.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// Elsewhere a worker leaves when its stdin ends.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
