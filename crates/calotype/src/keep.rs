//! How many finished jobs a server keeps, as it is said on the command line.

use std::time::Duration;

use calotype_engine::store::Retention;

const SIZES: [(&str, u64); 6] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
];
const TIMES: [(&str, u64); 4] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60)];

/// Limits on finished jobs. The oldest are deleted until all limits hold, at the start and every ten minutes.
#[derive(Debug, Clone, clap::Args)]
pub struct KeepArgs {
    /// Delete jobs that ended longer ago than this, for instance 36h, 30d or 8w; without it, age is no reason.
    #[arg(long, value_name = "TIME", value_parser = time)]
    keep_age: Option<Duration>,
    /// Keep at most so many finished jobs, the newest; 0 for no limit. Unfinished ones are never deleted, nor those that
    /// ended or whose pictures were fetched within the last hour.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    keep_jobs: u64,
    /// Delete the oldest finished jobs while the pictures of all jobs take more than this, for instance 20GiB; without it,
    /// size is no reason. Pictures of deleted jobs go to DATA/trash for seven days, or until the disk is full.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    keep_bytes: Option<u64>,
}

impl KeepArgs {
    /// The engine's setting.
    pub fn retention(&self) -> Retention {
        Retention {
            max_age: self.keep_age,
            max_jobs: (self.keep_jobs > 0).then_some(self.keep_jobs),
            max_bytes: self.keep_bytes,
        }
    }
}

fn time(words: &str) -> Result<Duration, String> {
    let seconds = measure(words, &TIMES).ok_or_else(|| {
        format!("`{words}` is no time; write a whole number of minutes, hours, days or weeks like 90m, 36h, 30d or 8w")
    })?;
    Ok(Duration::from_secs(seconds))
}

fn size(words: &str) -> Result<u64, String> {
    measure(words, &SIZES).ok_or_else(|| {
        format!("`{words}` is no size; write a whole number of MB, MiB, GB, GiB, TB or TiB like 20GiB")
    })
}

/// A whole number above zero, and a unit.
fn measure(words: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(unit, worth)| {
        let number: u64 = words.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*worth).filter(|value| *value > 0)
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn parsed(words: &[&str]) -> Result<Retention, String> {
        let command = KeepArgs::augment_args(clap::Command::new("serve"));
        let matches = command
            .try_get_matches_from(std::iter::once(&"serve").chain(words))
            .map_err(|error| error.to_string())?;
        Ok(KeepArgs::from_arg_matches(&matches).unwrap().retention())
    }

    #[test]
    fn limits_are_said_with_their_units_and_the_default_keeps_many() {
        assert_eq!(parsed(&[]), Ok(Retention::default()));
        let words = ["--keep-age", "30d", "--keep-jobs", "0", "--keep-bytes", "20GiB"];
        let expected = Retention {
            max_age: Some(Duration::from_secs(30 * 86_400)),
            max_jobs: None,
            max_bytes: Some(20 << 30),
        };
        assert_eq!(parsed(&words), Ok(expected));
    }

    #[test]
    fn what_is_no_limit_is_refused_with_an_example() {
        for wrong in ["30", "d", "0d", "-1d", "1.5h", "99999999999999999999w", "30 days"] {
            let why = parsed(&["--keep-age", wrong]).unwrap_err();
            assert!(why.contains("30d") || wrong.starts_with('-'), "{wrong}: {why}");
        }
        for wrong in ["20", "20GIB", "0GiB", "18446744073709551615TiB"] {
            let why = parsed(&["--keep-bytes", wrong]).unwrap_err();
            assert!(why.contains("20GiB"), "{wrong}: {why}");
        }
    }
}
