//! The quick scenarios hold in every build; times of the wall are for `cargo xtask simulate` alone.

use super::{Extent, run};

#[test]
fn every_quick_scenario_meets_its_bound() {
    let report = run(Extent::Quick, "");
    let missed = report.missed();
    assert!(missed.is_empty(), "{}\n{}", missed.join("\n"), report.markdown());
}

#[test]
fn a_report_is_a_table_and_a_plot() {
    let mut report = super::Report::default();
    report.law("Makespan", "one", "1.05", "≤ 1.1", true);
    report.law("Makespan", "two", "1.25", "≤ 1.1", false);
    report.ratios = vec![("one".into(), 1.05)];
    assert!(report.markdown().contains("| two | 1.25 | ≤ 1.1 | not met |"));
    assert_eq!(report.missed().len(), 1);
    assert!(report.svg().starts_with("<svg") && report.svg().contains("1.050"));
}
