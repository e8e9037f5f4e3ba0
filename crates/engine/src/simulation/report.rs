//! The figures as a table, and what the plot is drawn from.

use std::fmt::Write as _;

use super::plot;

/// What a simulation found.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    /// Makespans by their lower bounds, for the plot.
    pub(super) ratios: Vec<(String, f64)>,
    /// Device time of each class over time, for the plot: seconds, and shares of all.
    pub(super) shares: Vec<(&'static str, Vec<(f64, f64)>)>,
}

#[derive(Debug)]
struct Row {
    group: &'static str,
    what: String,
    measured: String,
    target: String,
    is_met: Option<bool>,
}

impl Report {
    /// A figure with its target.
    pub(super) fn law(
        &mut self,
        group: &'static str,
        what: impl Into<String>,
        measured: impl Into<String>,
        target: impl Into<String>,
        is_met: bool,
    ) {
        self.rows.push(Row {
            group,
            what: what.into(),
            measured: measured.into(),
            target: target.into(),
            is_met: Some(is_met),
        });
    }

    /// A figure that has no target.
    pub(super) fn figure(
        &mut self,
        group: &'static str,
        what: impl Into<String>,
        measured: impl Into<String>,
    ) {
        self.rows.push(Row {
            group,
            what: what.into(),
            measured: measured.into(),
            target: String::new(),
            is_met: None,
        });
    }

    /// What missed its target.
    pub fn missed(&self) -> Vec<String> {
        self.rows
            .iter()
            .filter(|row| row.is_met == Some(false))
            .map(|row| {
                format!(
                    "{}: {}: {}, the target is {}",
                    row.group, row.what, row.measured, row.target
                )
            })
            .collect()
    }

    /// The table, in Markdown.
    pub fn markdown(&self) -> String {
        let (mut text, mut group) = (String::new(), "");
        for row in &self.rows {
            if row.group != group {
                group = row.group;
                let _ = write!(text, "\n| {group} | measured | target | |\n|---|---|---|---|\n");
            }
            let verdict = match row.is_met {
                Some(true) => "met",
                Some(false) => "not met",
                None => "",
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {verdict} |",
                row.what, row.measured, row.target
            );
        }
        text
    }

    /// The plot.
    pub fn svg(&self) -> String {
        plot::svg(self)
    }
}
