//! The drawing beside the tables: frames a second, ours by testpmd's, one bar a cell.

use std::fmt::Write as _;

use super::results::{Results, Target};
use super::rounds::Pair;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 78.0;
const ROW: f64 = 24.0;
const BAR: f64 = 13.0;

/// Colours of a light and of a dark page.
const STYLE: &str = "
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .title { font-size: 15px; font-weight: 600 }
    .quiet { fill: #59636e }
    .end { text-anchor: end }
    .middle { text-anchor: middle }
    .grid { stroke: #d1d9e0; stroke-width: 1 }
    .one { stroke: #59636e; stroke-width: 1.5 }
    .loop { fill: #0969da }
    .vm-to-vm { fill: #1a7f37 }
    .spread { stroke: #1f2328; stroke-width: 1.5 }
    .target { stroke: #bc4c00; stroke-width: 2 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .quiet { fill: #9198a1 }
      .grid { stroke: #3d444d }
      .one { stroke: #9198a1 }
      .loop { fill: #4493f8 }
      .vm-to-vm { fill: #3fb950 }
      .spread { stroke: #f0f6fc }
      .target { stroke: #f0883e }
    }";

struct Bar<'a> {
    name: &'a str,
    pair: Pair,
    target: Option<f64>,
    settled: bool,
}

/// The drawing as SVG.
pub fn draw(results: &Results) -> String {
    let bars = bars(results);
    let most = bars.iter().map(|bar| bar.pair.ratio.max.max(bar.target.unwrap_or(0.0))).fold(2.0, f64::max);
    let (end, step) = axis(most);
    let x = |ratio: f64| LEFT + ratio / end * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * bars.len().max(1) as f64;
    let mut svg = String::new();
    let mut line = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    let height = bottom + 34.0;
    line(format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"));
    line("<title>Frames a second: virtio-forwarder by testpmd</title>".to_owned());
    line(format!("<style>{STYLE}\n</style>"));
    line(
        "<text class=\"title\" x=\"12\" y=\"24\">Frames a second: virtio-forwarder ÷ testpmd</text>"
            .to_owned(),
    );
    for (y, text) in [
        (44, "Medians of interleaved rounds: right of 1 is ahead of testpmd."),
        (61, "The thin line runs from the smallest to the largest ratio, the upright mark is the target."),
    ] {
        line(format!("<text class=\"quiet\" x=\"12\" y=\"{y}\">{text}</text>"));
    }
    let mut at = 0.0;
    while at <= end + step / 2.0 {
        let class = if (at - 1.0_f64).abs() < 1e-9 { "one" } else { "grid" };
        line(format!(
            "<line class=\"{class}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>",
            x(at)
        ));
        line(format!(
            "<text class=\"quiet middle\" x=\"{:.1}\" y=\"{:.1}\">{at}</text>",
            x(at),
            bottom + 18.0
        ));
        at += step;
    }
    if bars.is_empty() {
        line(format!(
            "<text class=\"quiet\" x=\"{LEFT}\" y=\"{:.1}\">Nothing was measured yet.</text>",
            TOP + 16.0
        ));
    }
    for (n, bar) in bars.iter().enumerate() {
        let middle = TOP + ROW * (n as f64 + 0.5);
        let class = bar.name.split('.').next().unwrap_or_default();
        let ratio = &bar.pair.ratio;
        let faint = if bar.settled { "" } else { " opacity=\"0.4\"" };
        line(format!(
            "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 10.0,
            middle + 4.0,
            bar.name
        ));
        line(format!(
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"{faint}/>",
            middle - BAR / 2.0,
            x(ratio.median) - LEFT
        ));
        line(format!(
            "<line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
            x(ratio.min),
            x(ratio.max)
        ));
        if let Some(target) = bar.target {
            let (top, end) = (middle - ROW / 2.0 + 3.0, middle + ROW / 2.0 - 3.0);
            line(format!(
                "<line class=\"target\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top:.1}\" y2=\"{end:.1}\"/>",
                x(target)
            ));
        }
        let mut value = String::new();
        let _ = write!(value, "{:.2}{}", ratio.median, if bar.settled { "" } else { " (not settled)" });
        let right = x(ratio.max.max(ratio.median).max(bar.target.unwrap_or(0.0))) + 6.0;
        line(format!("<text x=\"{right:.1}\" y=\"{:.1}\">{value}</text>", middle + 4.0));
    }
    line("</svg>".to_owned());
    svg
}

/// The cells that compare a rate with testpmd's.
fn bars(results: &Results) -> Vec<Bar<'_>> {
    let compared = results
        .cells
        .iter()
        .filter(|cell| cell.name.starts_with("loop.") || cell.name.starts_with("vm-to-vm."));
    let bar = |cell: &super::results::Cell| -> Option<(Pair, Option<f64>)> {
        let measure = cell.outcome.as_ref().ok()?.first()?;
        let target = match measure.target {
            Some(Target::RatioAtLeast(target)) => Some(target),
            _ => None,
        };
        Some((measure.pair(1)?, target))
    };
    compared
        .filter_map(|cell| {
            let (pair, target) = bar(cell)?;
            Some(Bar { name: &cell.name, settled: pair.is_settled(), pair, target })
        })
        .collect()
}

/// Where the axis ends, and the distance of its marks: round numbers, and at most eight marks.
fn axis(most: f64) -> (f64, f64) {
    let steps = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
    let step = steps.into_iter().find(|step| most / step <= 8.0).unwrap_or(1000.0);
    ((most / step).ceil() * step, step)
}

#[cfg(test)]
mod tests {
    use super::super::results::{Cell, Measure, Side};
    use super::*;

    #[test]
    fn each_compared_cell_is_a_bar_inside_the_picture() {
        let side = |name, value| Side::new(name, [Some(value); 3]);
        let rate =
            Measure::new("r", "u", vec![side("a", 30.0), side("b", 10.0)], Some(Target::RatioAtLeast(1.3)));
        let mut results = Results::default();
        for name in ["loop.split.64.1", "vm-to-vm.split.64.1", "start"] {
            let outcome = Ok(vec![rate.clone()]);
            results.put(Cell { name: name.to_owned(), commit: String::new(), seconds: 1.0, outcome });
        }
        let svg = draw(&results);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!(svg.matches("class=\"target\"").count(), 2);
        assert!(svg.contains(">3.00<") && !svg.contains(">start<"));
        assert!(draw(&Results::default()).contains("Nothing was measured yet"));
    }

    #[test]
    fn the_axis_has_few_marks() {
        assert_eq!(axis(2.0), (2.0, 0.5));
        assert_eq!(axis(4.1), (5.0, 1.0));
        assert_eq!(axis(9.0), (10.0, 2.0));
    }
}
