//! A source file as the checks read it: without its tests and comments, and the paths that it names. Text in, text out.

/// The lines that are compiled into the program: what stands under `#[cfg(test)]` is left out. Expects formatted code, in
/// which an item ends with a `;` or with a brace as deep as its begin.
pub(crate) fn without_tests(text: &str) -> Vec<&str> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() != "#[cfg(test)]" {
            kept.push(line);
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let (brace, other) = (
            format!("{indent}}}"),
            [format!("{indent}}};"), format!("{indent});")],
        );
        for line in lines.by_ref() {
            let is_whole = line.starts_with(indent)
                && !line[indent.len()..].starts_with([' ', '#'])
                && line.ends_with(';');
            if is_whole || line == brace || other.iter().any(|end| line == end) {
                break;
            }
        }
    }
    kept
}

/// The code of these lines: without comments that have a line of their own.
pub(crate) fn code(lines: &[&str]) -> String {
    let code = lines
        .iter()
        .copied()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// The `//!` lines at the begin of a file, as one line.
pub(crate) fn head(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Every path that begins with one of `starts`, such as `crate`; a group in braces gives one path for each of its members.
pub(crate) fn paths(code: &str, starts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for start in starts {
        let begin = format!("{start}::");
        for (at, _) in code.match_indices(&begin) {
            let before = &code[..at];
            let is_inside =
                before.ends_with(|letter: char| is_of_a_name(letter) || letter == ':' || letter == '$');
            // `pub(in crate::room)` says who may look in; it imports nothing.
            if !is_inside && !before.ends_with("(in ") {
                tree(&code[at..], "", &mut found);
            }
        }
    }
    found
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Reads one tree of a `use`, or a path of an expression, and returns what is behind it.
fn tree<'a>(text: &'a str, before: &str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if rest.is_empty() {
                return rest;
            }
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            let behind = tree(rest, before, found);
            if behind.len() == rest.len() {
                return rest;
            }
            rest = behind;
        }
    }
    let end = text
        .find(|letter| !is_of_a_name(letter) && letter != '*')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match before {
        "" => name.to_owned(),
        before => format!("{before}::{name}"),
    };
    match rest.strip_prefix("::") {
        // A turbofish ends the path.
        Some(inner) if !inner.starts_with('<') => tree(inner, &path, found),
        Some(_) | None => {
            found.push(path);
            match rest.strip_prefix(" as ") {
                Some(alias) => alias.trim_start_matches(is_of_a_name),
                None => rest,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_under_cfg_test_is_left_out_and_what_follows_it_is_not() {
        let text = "mod a;\n#[cfg(test)]\nmod tests;\npub use a::A;\n#[cfg(test)]\n#[expect(unused)]\nmod more {\n    use b;\n}\nfn last() {}";
        assert_eq!(without_tests(text), ["mod a;", "pub use a::A;", "fn last() {}"]);
    }

    #[test]
    fn a_helper_for_tests_inside_an_implementation_is_left_out_alone() {
        let text =
            "impl A {\n    #[cfg(test)]\n    pub(crate) fn b() {\n        c();\n    }\n\n    fn d() {}\n}";
        assert_eq!(without_tests(text), ["impl A {", "", "    fn d() {}", "}"]);
    }

    #[test]
    fn a_group_gives_a_path_for_each_of_its_members() {
        let code =
            "use crate::memory::{\n    Peaks, memory_plan::{Precision, Slicing as S},\n};\nuse crate::view;";
        assert_eq!(
            paths(code, &["crate"]),
            [
                "crate::memory::Peaks",
                "crate::memory::memory_plan::Precision",
                "crate::memory::memory_plan::Slicing",
                "crate::view",
            ]
        );
    }

    #[test]
    fn paths_in_expressions_count_and_visibilities_do_not() {
        let code = "pub(in crate::store) fn f() { let a = crate::clock::now_ms(); g::<crate::error::Error>(); $crate::x!(); }";
        assert_eq!(
            paths(code, &["crate"]),
            ["crate::clock::now_ms", "crate::error::Error"]
        );
        assert!(paths("mycrate::a; self::crate::b", &["crate"]).is_empty());
    }

    #[test]
    fn a_head_is_one_line() {
        assert_eq!(head("//! A\n//! b. Pure.\n\n//! not this"), "A b. Pure.");
    }
}
