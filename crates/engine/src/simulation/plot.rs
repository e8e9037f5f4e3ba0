//! The plot: makespans beside their lower bounds, and the shares of the classes over time.

use std::fmt::Write as _;

use super::Report;

const WIDTH: f64 = 920.0;
const LABELS: f64 = 330.0;
const ROW: f64 = 18.0;
const COLOURS: [&str; 4] = ["#2166ac", "#1b7837", "#b35806", "#762a83"];

/// Draws a report.
pub(super) fn svg(report: &Report) -> String {
    let bars_height = 40.0 + ROW * report.ratios.len() as f64;
    let height = bars_height + 240.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    bars(report, &mut text);
    curves(report, bars_height + 20.0, &mut text);
    text.push_str("</svg>\n");
    text
}

/// One bar a makespan, from 0.9 to 1.2 times its bound.
fn bars(report: &Report, text: &mut String) {
    let x = |ratio: f64| LABELS + (ratio.clamp(0.9, 1.2) - 0.9) / 0.3 * (WIDTH - LABELS - 60.0);
    let bottom = 26.0 + ROW * report.ratios.len() as f64;
    let _ = writeln!(
        text,
        "<text x=\"10\" y=\"16\" font-weight=\"bold\">Makespan / lower bound</text>"
    );
    for mark in [0.9, 1.0, 1.1, 1.2] {
        let colour = if mark == 1.1 { "#b2182b" } else { "#cccccc" };
        let at = x(mark);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"22\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"{colour}\"/>\
             <text x=\"{at:.1}\" y=\"18\" text-anchor=\"middle\">{mark}</text>"
        );
    }
    for (index, (what, ratio)) in report.ratios.iter().enumerate() {
        let y = 26.0 + ROW * index as f64;
        let (from, to) = (x(0.9), x(*ratio));
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{what}</text>\
             <rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{ratio:.3}</text>",
            LABELS - 8.0,
            y + 10.0,
            to - from,
            COLOURS[0],
            to + 4.0,
            y + 10.0,
        );
    }
}

/// The share of each class of the device time so far.
fn curves(report: &Report, top: f64, text: &mut String) {
    let last = report
        .shares
        .iter()
        .flat_map(|(_, points)| points.last())
        .map(|(at, _)| *at);
    let until = last.fold(1.0, f64::max);
    let x = |at: f64| 60.0 + at / until * (WIDTH - 160.0);
    let y = |share: f64| top + 180.0 - share * 160.0;
    let _ = writeln!(
        text,
        "<text x=\"10\" y=\"{:.1}\" font-weight=\"bold\">Share of device time so far, three saturated classes</text>",
        top
    );
    for mark in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let at = y(mark);
        let _ = writeln!(
            text,
            "<line x1=\"60\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"54\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            WIDTH - 100.0,
            at + 4.0,
            mark * 100.0
        );
    }
    for ((name, points), colour) in report.shares.iter().zip(COLOURS) {
        let line: Vec<String> = points
            .iter()
            .map(|(at, share)| format!("{:.1},{:.1}", x(*at), y(*share)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        if let Some((at, share)) = points.last() {
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x(*at) + 6.0,
                y(*share) + 4.0
            );
        }
    }
    let _ = writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{until:.0} s of virtual time</text>",
        WIDTH - 100.0,
        top + 198.0
    );
}
