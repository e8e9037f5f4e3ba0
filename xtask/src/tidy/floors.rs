//! The floors of the engine: a room imports from itself and from the rooms below, so that no two know each other.

use super::source::{code, paths, without_tests};

const ENGINE: &str = "crates/engine/src/";

/// From the ground up; rooms on one floor do not know each other.
///
/// The store stands above `processing::job` because it knows a job's record: a job is still one generation. Once a job is a
/// graph of steps (issue 13) the store keeps ids, states and text, and goes down to the leaves.
const FLOORS: &[&[&str]] = &[
    &["clock", "artifact", "error"],
    &["artifact_cache", "drain", "worker"],
    &["device"],
    &["memory"],
    &["model"],
    &["inference"],
    &["postprocessing"],
    &["processing::job"],
    &["store", "event"],
    &["health", "config"],
    &["processing::admission", "processing::schedule"],
    &["processing::dispatch::core"],
    &["processing::dispatch"],
    &["processing"],
    &["startup"],
    &["engine"],
    &["simulation"],
];

/// What is wrong with the imports of one file of the engine.
pub(super) fn look(name: &str, text: &str, wrong: &mut Vec<String>) {
    let Some(file) = name.strip_prefix(ENGINE) else {
        return;
    };
    if file == "lib.rs" || file.starts_with("bin/") {
        return;
    }
    let module = module_of(file);
    let Some((floor, room)) = room_of(&module) else {
        wrong.push(format!("{name}: it has no floor; give it one in {}", file!()));
        return;
    };
    let code = code(&without_tests(text));
    let mut named: Vec<String> = paths(&code, &["crate"])
        .iter()
        .map(|path| path.trim_start_matches("crate::").to_owned())
        .collect();
    named.extend(
        paths(&code, &["super"])
            .iter()
            .map(|path| resolved(&module, path)),
    );
    named.sort_unstable();
    named.dedup();
    for path in named {
        match room_of(&path) {
            Some((_, other)) if other == room => {}
            Some((below, _)) if below < floor => {}
            Some((_, other)) => wrong.push(format!(
                "{name}: `{path}` is of `{other}`, which does not stand below `{room}`"
            )),
            None => wrong.push(format!(
                "{name}: `{path}` is of no room; name the room that owns it"
            )),
        }
    }
}

/// The module that a file is: `a/b/mod.rs` and `a/b.rs` are both `a::b`.
fn module_of(file: &str) -> String {
    let file = file.trim_end_matches(".rs");
    file.strip_suffix("/mod").unwrap_or(file).replace('/', "::")
}

/// A path that begins with `super`, from the root. One `super` of an inline module goes a step too far, and stays inside
/// the room unless that has no folder.
fn resolved(module: &str, path: &str) -> String {
    let mut from: Vec<&str> = module.split("::").collect();
    let mut rest = path;
    while let Some(inner) = rest.strip_prefix("super::") {
        from.pop();
        rest = inner;
    }
    from.push(rest);
    from.join("::")
}

/// The innermost room that a path is in, with its floor.
fn room_of(path: &str) -> Option<(usize, &'static str)> {
    let rooms = FLOORS
        .iter()
        .enumerate()
        .flat_map(|(floor, rooms)| rooms.iter().map(move |room| (floor, *room)));
    rooms
        .filter(|(_, room)| {
            path.strip_prefix(room)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
        .max_by_key(|(_, room)| room.len())
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
    fn an_import_that_goes_up_is_found_also_inside_a_group() {
        let text = "use crate::error::Error;\nuse crate::{clock, event::EventLog};";
        let found = wrong("crates/engine/src/memory/ledger.rs", text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`event::EventLog`"), "{found:?}");
    }

    #[test]
    fn rooms_of_one_floor_do_not_know_each_other() {
        let found = wrong("crates/engine/src/store/open.rs", "use crate::event::EventLog;");
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_re_export_of_a_higher_floor_is_no_way_to_a_lower_one() {
        let store = "crates/engine/src/store/open.rs";
        assert!(wrong(store, "use crate::processing::job::JobState;").is_empty());
        assert_eq!(wrong(store, "use crate::processing::JobState;").len(), 1);
    }

    #[test]
    fn the_innermost_room_counts() {
        let core = "crates/engine/src/processing/dispatch/core/start.rs";
        assert!(wrong(core, "use super::step::Step;").is_empty());
        assert!(wrong(core, "use crate::processing::schedule::Fleet;").is_empty());
        assert_eq!(wrong(core, "use super::super::message::Command;").len(), 1);
        assert!(
            wrong(
                "crates/engine/src/processing/dispatch/driver.rs",
                "use super::core::Core;"
            )
            .is_empty()
        );
    }

    #[test]
    fn what_tests_import_does_not_count() {
        let text = "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}";
        assert!(wrong("crates/engine/src/memory/ledger.rs", text).is_empty());
    }

    #[test]
    fn a_new_room_asks_for_a_floor_and_a_name_of_the_root_for_its_room() {
        assert_eq!(wrong("crates/engine/src/helpers.rs", "").len(), 1);
        assert_eq!(
            wrong("crates/engine/src/startup.rs", "use crate::Config;").len(),
            1
        );
    }
}
