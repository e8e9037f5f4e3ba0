//! Whether the kernel's out-of-memory killer ran: its counters, compared between two moments.
//!
//! The counters are those of a control group or of the whole system and name no process. That one rose says that the
//! killer ran at that time; of a process that SIGKILL ended meanwhile, and not ours, it is by far the likeliest reason.

use std::fs;
use std::path::{Path, PathBuf};

/// The files in which the kernel counts what it killed for memory, in lines of a name and a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryKillCounters {
    files: Vec<PathBuf>,
}

impl MemoryKillCounters {
    /// The counters of this system, and those of the control groups (version 2) of this process and of its root. On a
    /// system without them nothing is ever found.
    pub fn of_this_system() -> Self {
        let groups = Path::new("/sys/fs/cgroup");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut files = vec![PathBuf::from("/proc/vmstat"), groups.join("memory.events")];
        files.extend(own_group(&own).map(|group| groups.join(group).join("memory.events")));
        Self::in_files(files)
    }

    /// Other files of the same form.
    pub fn in_files(files: Vec<PathBuf>) -> Self {
        Self { files }
    }

    /// What they count now; a file that cannot be read counts nothing.
    pub(super) fn read(&self) -> MemoryKills {
        let count = |file: &PathBuf| fs::read_to_string(file).ok().as_deref().and_then(kills);
        MemoryKills(self.files.iter().map(count).collect())
    }
}

/// Kills so far, by counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryKills(Vec<Option<u64>>);

impl MemoryKills {
    /// Whether any counter is larger than it was.
    pub(super) fn rose_since(&self, before: &MemoryKills) -> bool {
        let pairs = self.0.iter().zip(&before.0);
        pairs
            .into_iter()
            .any(|pair| matches!(pair, (Some(now), Some(then)) if now > then))
    }
}

/// The path of the process's own control group below the mount, from `/proc/self/cgroup`; none where it is the root.
fn own_group(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let path = path.trim_start_matches('/');
    // A group outside of the namespace is told as a way up, which the mount does not have.
    (!path.is_empty() && !path.split('/').any(|part| part == "..")).then_some(path)
}

/// The number of `oom_kill`, in `/proc/vmstat` as in `memory.events`.
fn kills(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kills_are_read_from_both_forms_and_from_no_other_line() {
        let events = "low 0\nhigh 12\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(kills(events), Some(2));
        assert_eq!(kills("nr_free_pages 5\noom_kill 41\nnuma_hit 9\n"), Some(41));
        for other in [
            "",
            "oom 3\n",
            "oom_group_kill 1\n",
            "oom_kill\n",
            "oom_kill many\n",
            "xoom_kill 3\n",
        ] {
            assert_eq!(kills(other), None, "{other}");
        }
    }

    #[test]
    fn the_own_group_is_the_one_of_version_2_and_never_the_root() {
        assert_eq!(
            own_group("0::/user.slice/calotype.service\n"),
            Some("user.slice/calotype.service")
        );
        assert_eq!(own_group("4:memory:/old\n0::/new\n"), Some("new"));
        for none in ["", "0::/\n", "4:memory:/old\n", "0::/../outside\n"] {
            assert_eq!(own_group(none), None, "{none}");
        }
    }

    #[test]
    fn only_a_counter_that_was_readable_both_times_and_rose_tells_of_a_kill() {
        let kills = |counts: &[Option<u64>]| MemoryKills(counts.to_vec());
        assert!(kills(&[Some(3), Some(2)]).rose_since(&kills(&[Some(3), Some(1)])));
        for (now, before) in [
            ([Some(3), None], [Some(3), None]),
            ([Some(3), Some(1)], [Some(3), None]),
            ([Some(3), None], [Some(3), Some(1)]),
            // Another group, or a system that was restarted.
            ([Some(0), Some(1)], [Some(3), Some(1)]),
        ] {
            assert!(!kills(&now).rose_since(&kills(&before)), "{now:?} {before:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_counts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("memory.events");
        fs::write(&there, "oom_kill 5\n").unwrap();
        let counters = MemoryKillCounters::in_files(vec![there, folder.path().join("no")]);
        assert_eq!(counters.read(), MemoryKills(vec![Some(5), None]));
    }
}
