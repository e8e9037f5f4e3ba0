//! Files that are called pure: what they say follows from what they are handed. They know no clock, lock, I/O or async.

use super::source::{code, head, paths, without_tests};

/// Files and folders (with `/` at their end) that are pure. The head of each, a folder's in its `mod.rs` or `lib.rs`, says
/// `Pure`; and what says so is here.
const PURE: &[&str] = &[
    "crates/engine/src/device/visible.rs",
    "crates/engine/src/event/previews.rs",
    "crates/engine/src/event/ring.rs",
    "crates/engine/src/health/verdict.rs",
    "crates/engine/src/inference/abilities.rs",
    "crates/engine/src/inference/control.rs",
    "crates/engine/src/inference/estimate.rs",
    "crates/engine/src/inference/extras.rs",
    "crates/engine/src/inference/loras.rs",
    "crates/engine/src/inference/mask.rs",
    "crates/engine/src/inference/needs.rs",
    "crates/engine/src/inference/parts.rs",
    "crates/engine/src/inference/prompt.rs",
    "crates/engine/src/inference/validate.rs",
    "crates/engine/src/memory/ledger.rs",
    "crates/engine/src/memory/memory_plan.rs",
    "crates/engine/src/memory/peaks.rs",
    "crates/engine/src/memory/weight_cache.rs",
    "crates/engine/src/memory/weight_cache/source.rs",
    "crates/engine/src/model/family.rs",
    "crates/engine/src/model/family/checkpoint.rs",
    "crates/engine/src/model/family/lora.rs",
    "crates/engine/src/model/usual.rs",
    "crates/engine/src/postprocessing/finish.rs",
    "crates/engine/src/processing/dispatch/core/",
    "crates/engine/src/processing/job/state.rs",
    "crates/engine/src/processing/job/timeline.rs",
    "crates/engine/src/processing/schedule/",
    "crates/engine/src/worker/backoff.rs",
    "crates/engine/src/worker/deadlines.rs",
    "crates/engine/src/worker/deadlines/allowance.rs",
    "crates/engine/src/worker/limiter.rs",
    "crates/engine/src/worker/state.rs",
    "crates/imaging/src/",
    "crates/protocol/src/frame.rs",
    "crates/server/src/accept.rs",
    "crates/server/src/range.rs",
    "crates/worker/src/pixels.rs",
    "crates/worker/src/sampler/",
];

/// Paths that are not pure, with all that is below them. An `Instant` may be handed in; asking for one is [`WORDS`].
const PATHS: &[&str] = &[
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "tokio",
    "crate::clock",
];

/// Words that are not pure, however they were imported.
const WORDS: &[&str] = &[
    "Instant::now",
    ".elapsed()",
    "SystemTime",
    "Mutex",
    "RwLock",
    "async fn",
    "async move",
    ".await",
];

/// Where one file is not what is said of it.
pub(super) fn look(name: &str, text: &str, wrong: &mut Vec<String>) {
    let says_so = says_pure(&head(text));
    let Some(entry) = PURE.iter().find(|entry| is_in(name, entry)) else {
        if says_so {
            wrong.push(format!(
                "{name}: it says that it is pure; put it on the list in {}",
                file!()
            ));
        }
        return;
    };
    let speaks_for_the_entry = name == *entry
        || ["mod.rs", "lib.rs"]
            .iter()
            .any(|file| name == format!("{entry}{file}"));
    if speaks_for_the_entry && !says_so {
        wrong.push(format!(
            "{name}: it is on the list of pure files, and its head does not say `Pure`"
        ));
    }
    for what in impure(text) {
        wrong.push(format!("{name}: `{what}`: this file is pure; have it handed in"));
    }
}

/// Entries of the list that no file is of.
pub(super) fn missing(names: &[String]) -> Vec<String> {
    let missing = PURE
        .iter()
        .filter(|entry| !names.iter().any(|name| is_in(name, entry)));
    missing
        .map(|entry| format!("{}: {entry} is on the list and not on disk", file!()))
        .collect()
}

fn is_in(name: &str, entry: &str) -> bool {
    name == entry || (entry.ends_with('/') && name.starts_with(entry))
}

/// Whether a head has the word as a statement of its own: `Pure.`, `Pure: …`, `Pure arithmetic`, not `pure Rust`.
fn says_pure(head: &str) -> bool {
    head.split_whitespace()
        .any(|word| word.trim_end_matches(['.', ':', ';', ',']) == "Pure")
}

fn impure(text: &str) -> Vec<String> {
    let code = code(&without_tests(text));
    let mut found: Vec<String> = paths(&code, &["std", "tokio", "crate"])
        .into_iter()
        .filter(|path| {
            PATHS.iter().any(|impure| {
                path.strip_prefix(impure)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        })
        .collect();
    let words = WORDS.iter().filter(|word| code.contains(**word));
    found.extend(words.map(|word| (*word).to_owned()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(name: &str, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        look(name, text, &mut wrong);
        wrong
    }

    #[test]
    fn a_file_that_says_pure_and_is_not_listed_is_found() {
        assert_eq!(
            wrong("crates/engine/src/new.rs", "//! New things. Pure.").len(),
            1
        );
        assert!(wrong("crates/engine/src/new.rs", "//! The rten engine: pure Rust.").is_empty());
    }

    #[test]
    fn a_listed_file_says_so_in_its_head_and_a_folder_in_its_mod() {
        assert_eq!(
            wrong("crates/engine/src/memory/ledger.rs", "//! Leases.").len(),
            1
        );
        assert_eq!(
            wrong("crates/engine/src/processing/schedule/mod.rs", "//! Rooms.").len(),
            1
        );
        assert!(wrong("crates/engine/src/processing/schedule/lanes.rs", "//! Lanes.").is_empty());
    }

    #[test]
    fn clocks_locks_files_and_async_are_found_in_a_group_too() {
        let impure_texts = [
            "use std::time::{Duration, SystemTime};",
            "use std::{fs, fmt};",
            "let now = Instant::now();",
            "let age = at.elapsed();",
            "use std::sync::{Arc, Mutex};",
            "async fn f() {}",
            "let a = b.await;",
            "tokio::spawn(f);",
            "let now = crate::clock::now_ms();",
            "std::thread::sleep(d);",
        ];
        for text in impure_texts {
            assert!(!impure(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn durations_moments_handed_in_logs_and_tests_are_pure() {
        let text = "use std::time::{Duration, Instant};\nfn f(now: Instant) { tracing::warn!(\"x\"); }\n\
            #[cfg(test)]\nmod tests {\n    use std::fs;\n    fn f() { Instant::now(); }\n}";
        assert_eq!(impure(text), Vec::<String>::new());
    }

    #[test]
    fn an_entry_without_a_file_is_found() {
        assert_eq!(missing(&[]).len(), PURE.len());
    }
}
