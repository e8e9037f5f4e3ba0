//! The rows as Markdown: of this tree alone, or beside another commit's, with the ratio of the two.

use std::fmt::{self, Display, Formatter, Write as _};

use serde_json::Value;

/// A line that the benchmark prints.
#[derive(Debug, Clone)]
pub(super) struct Row {
    group: String,
    what: String,
    measured: String,
    target: String,
    met: Option<bool>,
    figure: Option<Figure>,
}

/// What can be compared.
#[derive(Debug, Clone, Copy)]
struct Figure {
    value: f64,
    more_is_better: bool,
}

impl Row {
    /// `None` where it is something else.
    pub(super) fn read(row: &Value) -> Option<Self> {
        let text = |name: &str| Some(row[name].as_str()?.to_owned());
        let value = row["value"].as_f64();
        Some(Self {
            group: text("group")?,
            what: text("what")?,
            measured: text("measured")?,
            target: text("target")?,
            met: row["met"].as_bool(),
            figure: value.map(|value| Figure {
                value,
                more_is_better: row["better"] == "more",
            }),
        })
    }

    fn is(&self, other: &Row) -> bool {
        (&self.group, &self.what) == (&other.group, &other.what)
    }

    fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (group, what, measured, target) = (&self.group, &self.what, &self.measured, &self.target);
        write!(f, "{group}: {what}: {measured} {target} {}", self.verdict())
    }
}

/// All rows of a group. Each side has a list of rows a round; of several rounds the median is shown.
pub(super) fn table(ours: &[Vec<Row>], beside: Option<(&str, &[Vec<Row>])>) -> String {
    let mut text = String::new();
    let mut group = "";
    let mut every: Vec<&Row> = ours.first().into_iter().flatten().collect();
    // What only the other one has, such as a queue that it did not fill in time.
    let theirs = beside.iter().flat_map(|(_, rounds)| rounds.first()).flatten();
    for row in theirs {
        if !every.iter().any(|one| one.is(row)) {
            every.push(row);
        }
    }
    for row in every {
        if group != row.group {
            group = &row.group;
            let head = match beside {
                Some((name, _)) => {
                    format!(
                        "| {group} | {name} | this tree | better by | target | |\n|---|---|---|---|---|---|"
                    )
                }
                None => format!("| {group} | measured | target | |\n|---|---|---|---|"),
            };
            let _ = writeln!(text, "\n{head}");
        }
        let what = &row.what;
        let mine = median(ours, row);
        let measured = mine.map_or("–", |row| row.measured.as_str());
        let verdict = mine.map_or("", Row::verdict);
        let target = &row.target;
        let _ = match beside {
            Some((_, rounds)) => {
                let their = median(rounds, row);
                let before = their.map_or("–", |row| row.measured.as_str());
                let better = their
                    .zip(mine)
                    .and_then(|(their, mine)| gain(their.figure?, mine.figure?));
                let better = better.map_or_else(String::new, |ratio| format!("{ratio}×"));
                writeln!(
                    text,
                    "| {what} | {before} | {measured} | {better} | {target} | {verdict} |"
                )
            }
            None => writeln!(text, "| {what} | {measured} | {target} | {verdict} |"),
        };
    }
    text
}

/// That row of the round in which it was the middle one.
fn median<'a>(rounds: &'a [Vec<Row>], wanted: &Row) -> Option<&'a Row> {
    let mut found: Vec<&Row> = rounds.iter().flatten().filter(|row| row.is(wanted)).collect();
    let value = |row: &Row| row.figure.map_or(0.0, |figure| figure.value);
    found.sort_by(|one, other| value(one).total_cmp(&value(other)));
    found.get(found.len() / 2).copied()
}

/// How many times better ours is, to two or three digits; below one it is worse.
fn gain(theirs: Figure, ours: Figure) -> Option<String> {
    let (more, less) = if ours.more_is_better {
        (ours.value, theirs.value)
    } else {
        (theirs.value, ours.value)
    };
    if less <= 0.0 {
        return None;
    }
    let ratio = more / less;
    Some(if ratio < 10.0 {
        format!("{ratio:.2}")
    } else {
        format!("{ratio:.0}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(what: &str, value: f64, better: &str) -> Row {
        Row::read(&json!({
            "group": "g", "what": what, "measured": format!("{value}"), "target": "", "met": null,
            "value": value, "better": better,
        }))
        .unwrap()
    }

    #[test]
    fn a_ratio_above_one_is_a_gain_for_times_and_for_rates() {
        let ours = [vec![row("time", 2.0, "less"), row("rate", 300.0, "more")]];
        let theirs = [vec![row("time", 5.0, "less"), row("rate", 200.0, "more")]];
        let text = table(&ours, Some(("abc", &theirs)));
        assert!(text.contains("| time | 5 | 2 | 2.50× |"), "{text}");
        assert!(text.contains("| rate | 200 | 300 | 1.50× |"), "{text}");
    }

    #[test]
    fn of_three_rounds_the_median_is_shown() {
        let rounds = [3.0, 1.0, 2.0].map(|value| vec![row("time", value, "less")]);
        assert!(table(&rounds, None).contains("| time | 2 |"));
    }

    #[test]
    fn a_row_that_one_side_lacks_is_shown_without_a_ratio() {
        let ours = [vec![row("both", 1.0, "less")]];
        let theirs = [vec![row("both", 1.0, "less"), row("theirs", 9.0, "less")]];
        let text = table(&ours, Some(("abc", &theirs)));
        assert!(text.contains("| theirs | 9 | – |  |"), "{text}");
    }
}
