//! Plots as SVG.
//!
//! Nine lines in nine colours cannot be told apart by all readers. So each scheduler has a row of
//! its own wherever a plot allows it, and where lines cross each has a colour (Okabe and Ito's,
//! made for colour-blind readers) and a mark, in a legend in the order in which the lines end.

use anyhow::Result;
use plotters::coord::ranged1d::{AsRangedCoord, SegmentValue, SegmentedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordusize;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;

use crate::cell::{CELLS, Work};
use crate::figure::{At, Figure, Of};
use crate::result::{Column, Outcome};
use crate::scheduler::Kind;
use Shape::{Bars, Percentiles, Saturation, Shares};
use loads::weights::{LEVELS, ideal};

/// A plot of the result.
pub(crate) struct Plot {
    /// The name of its file, without the ending.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) title: &'static str,
    kind: Shape,
}

enum Shape {
    /// A row for each scheduler: the percentiles of a distribution in a cell.
    Percentiles(&'static str, Of, &'static str),
    /// A line for each scheduler: a figure over saturation, in the cells of this prefix.
    Saturation(&'static str, Figure, &'static str),
    /// A bar for each scheduler: a figure of a cell and its spread.
    Bars(&'static str, Figure, &'static str),
    /// A row for each scheduler: how the CPUs were shared between nice levels.
    Shares,
}

const fn plot(name: &'static str, title: &'static str, kind: Shape) -> Plot {
    Plot { name, title, kind }
}

/// All plots, in the order of the page.
pub(crate) static PLOTS: [Plot; 16] = [
    plot(
        "frame",
        "Frame completion beside 1.5 hogs for each CPU and a ping-pong pair",
        Percentiles("frame-1.5x", Of::Frame, "from due time to completion, ms"),
    ),
    plot(
        "frame-over-saturation",
        "Frame completion over saturation",
        Saturation(
            "frame",
            Figure::Time(Of::Frame, At::P99),
            "frame completion p99, ms",
        ),
    ),
    plot(
        "audio",
        "Audio wake-up beside 1.5 hogs for each CPU and a ping-pong pair",
        Percentiles("frame-1.5x", Of::Audio, "from due time to running, ms"),
    ),
    plot(
        "audio-over-saturation",
        "Audio wake-up over saturation",
        Saturation(
            "frame",
            Figure::Time(Of::Audio, At::P99),
            "audio wake-up p99, ms",
        ),
    ),
    plot(
        "input",
        "Input wake-up beside 1.5 hogs for each CPU and a ping-pong pair",
        Percentiles("frame-1.5x", Of::Input, "from event to running, ms"),
    ),
    plot(
        "input-over-saturation",
        "Input wake-up over saturation",
        Saturation(
            "frame",
            Figure::Time(Of::Input, At::P99),
            "input wake-up p99, ms",
        ),
    ),
    plot(
        "requests",
        "Request wake-up with 1.5 workers for each CPU",
        Percentiles("requests-1.5x", Of::Wakeup, "from request to running, ms"),
    ),
    plot(
        "requests-over-saturation",
        "Requests over saturation",
        Saturation(
            "requests",
            Figure::Time(Of::Request, At::P99),
            "request p99, ms",
        ),
    ),
    plot(
        "cyclictest",
        "cyclictest wake-up, SCHED_OTHER (SCHED_FIFO in its row), 2 hogs for each CPU",
        Percentiles("cyclictest-2x", Of::Wakeup, "wake-up latency, ms"),
    ),
    plot(
        "build-frame",
        "Frame completion beside a build of as many jobs as CPUs",
        Percentiles("build-frame", Of::Frame, "from due time to completion, ms"),
    ),
    plot(
        "shares",
        "Sharing between nice levels, as many hogs of each as CPUs",
        Shares,
    ),
    plot(
        "fairness",
        "Sharing between equal hogs beside the game",
        Bars(
            "frame-1.5x",
            Figure::HogsFairness,
            "least work of a hog over most (1 is fair)",
        ),
    ),
    plot(
        "hogs",
        "Hogs' work beside the game",
        Bars("frame-1.5x", Figure::HogsWork, "units of work a second"),
    ),
    plot(
        "pingpong",
        "Ping-pong beside the game",
        Bars("frame-1.5x", Figure::PingPong, "round trips a second"),
    ),
    plot(
        "process",
        "The scheduler's process, a spinning one's too",
        Bars(
            "cost",
            Figure::Cpu,
            "ms of CPU time for 1,000 context switches",
        ),
    ),
    plot(
        "programs",
        "The scheduler's BPF programs",
        Bars("cost", Figure::Bpf, "ms for 1,000 context switches"),
    ),
];

impl Plot {
    /// The plot as SVG; None if no scheduler has its figures.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub(crate) fn draw(&self, outcome: &Outcome) -> Result<Option<String>> {
        match self.kind {
            Percentiles(cell, of, axis) => percentiles(outcome, cell, of, axis),
            Saturation(prefix, figure, axis) => saturation(outcome, prefix, figure, axis),
            Bars(cell, figure, axis) => bars(outcome, cell, figure, axis),
            Shares => shares(outcome),
        }
    }
}

const WIDTH: u32 = 720;
/// Of a row of a plot with rows.
const ROW: u32 = 26;
const FONT: (&str, u32) = ("sans-serif", 14);
const INK: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
const GRID: RGBColor = RGBColor(0xdc, 0xdc, 0xdc);
/// Of nice -5, 0, 5, 10: dark to light, so that they differ without colour too.
const SHADES: [RGBColor; 4] = [
    RGBColor(0x08, 0x30, 0x6b),
    RGBColor(0x2f, 0x7e, 0xbc),
    RGBColor(0x8f, 0xc1, 0xde),
    RGBColor(0xdc, 0xea, 0xf6),
];

fn colour(column: &Column) -> RGBColor {
    let (red, green, blue) = match column.scheduler.id {
        "eevdf" => (0x00, 0x00, 0x00),
        "fifo" => (0x7a, 0x7a, 0x7a),
        "scx_metronome" => (0xd5, 0x5e, 0x00),
        "scx_rustland" => (0x00, 0x72, 0xb2),
        "scx_rlfifo" => (0x56, 0xb4, 0xe9),
        "scx_bpfland" => (0x00, 0x9e, 0x73),
        "scx_lavd" => (0xb8, 0x86, 0x0b),
        "scx_cosmos" => (0xcc, 0x79, 0xa7),
        _ => (0x7b, 0x4f, 0x9d),
    };
    RGBColor(red, green, blue)
}

/// How thick the line of a scheduler is.
fn thickness(column: &Column) -> u32 {
    if column.scheduler.kind == Kind::Metronome {
        4
    } else {
        2
    }
}

/// Draws one of six marks that differ without colour.
fn mark<T>(area: &Area<'_, T>, nr: usize, at: T::From, colour: RGBColor) -> Result<()>
where
    T: CoordTranslate,
    T::From: Clone + 'static,
{
    let (filled, line) = (colour.filled(), colour.stroke_width(2));
    match nr % 6 {
        0 => area.draw(&Circle::new(at, 4, filled))?,
        1 => area.draw(&TriangleMarker::new(at, 6, filled))?,
        2 => area.draw(&Cross::new(at, 4, line))?,
        3 => area.draw(&(EmptyElement::at(at) + Rectangle::new([(-4, -4), (4, 4)], filled)))?,
        4 => area.draw(&(EmptyElement::at(at) + PathElement::new([(0, -6), (0, 6)], line)))?,
        _ => area.draw(&Circle::new(at, 4, line))?,
    }
    Ok(())
}

type Area<'a, T> = DrawingArea<SVGBackend<'a>, T>;

/// A mark's number, its colour, and what it stands for.
type Key = (usize, RGBColor, &'static str);

fn legend(
    area: &Area<'_, Shift>,
    keys: &[Key],
    (x, y): (i32, i32),
    step: (i32, i32),
) -> Result<()> {
    for (nr, (shape, colour, name)) in (0..).zip(keys) {
        let (x, y) = (x + nr * step.0, y + nr * step.1);
        mark(area, *shape, (x, y), *colour)?;
        area.draw(&Text::new(*name, (x + 12, y - 7), FONT))?;
    }
    Ok(())
}

type Rows<'a, 'b, X> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, SegmentedCoord<RangedCoordusize>>>;

/// A chart with a row for each name, the last name on top, filled by `draw`.
fn rows<X>(
    names: &[&str],
    keys: &[Key],
    (x, axis): (X, &str),
    draw: impl FnOnce(&mut Rows<'_, '_, X::CoordDescType>) -> Result<()>,
) -> Result<Option<String>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    if names.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    {
        let size = (WIDTH, 100 + ROW * names.len() as u32);
        let whole = SVGBackend::with_string(&mut text, size).into_drawing_area();
        whole.fill(&WHITE)?;
        let (top, area) = whole.split_vertically(ROW);
        legend(&top, keys, (142, 16), (90, 0))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(46)
            .y_label_area_size(118)
            .build_cartesian_2d(x, (0..names.len() - 1).into_segmented())?;
        let name = |row: &SegmentValue<usize>| match row {
            SegmentValue::CenterOf(row) => names.get(*row).copied().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(FONT.into_font().color(&INK))
            .x_desc(axis)
            .x_label_formatter(&label)
            .y_labels(names.len())
            .y_label_formatter(&name)
            .draw()?;
        draw(&mut chart)?;
        whole.present()?;
    }
    Ok(Some(text))
}

/// The schedulers that have figures, the last one first, and theirs.
fn figures<F>(outcome: &Outcome, of: impl Fn(&Column) -> Option<F>) -> Vec<(&Column, F)> {
    let columns = outcome.columns.iter().rev();
    columns
        .filter_map(|column| Some((column, of(column)?)))
        .collect()
}

fn titles<F>(figures: &[(&Column, F)]) -> Vec<&'static str> {
    figures
        .iter()
        .map(|(column, _)| column.scheduler.title)
        .collect()
}

/// From a little less than the least to a little more than the most.
fn around(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (least, most) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        });
    least.min(most) * 0.8..most * 1.25
}

fn percentiles(outcome: &Outcome, cell: &str, of: Of, axis: &str) -> Result<Option<String>> {
    let figures = figures(outcome, |column| {
        let at = |at| Some(column.summary(cell, Figure::Time(of, at))?.median);
        At::ALL.into_iter().map(at).collect::<Option<Vec<f64>>>()
    });
    let range = around(
        figures
            .iter()
            .flat_map(|(_, points)| points.iter().copied()),
    );
    // What is 0 is drawn at the left end.
    let least = range.start;
    let keys: Vec<Key> = (0..)
        .zip(At::ALL)
        .map(|(nr, at)| (nr, INK, at.title()))
        .collect();
    rows(
        &titles(&figures),
        &keys,
        (range.log_scale(), axis),
        |chart| {
            for (row, (column, points)) in figures.iter().enumerate() {
                let at = |value: f64| (value.max(least), SegmentValue::CenterOf(row));
                let line = colour(column).stroke_width(thickness(column));
                chart.draw_series(LineSeries::new(points.iter().map(|value| at(*value)), line))?;
                // The outer ones first: where they coincide the inner ones are seen.
                for (nr, value) in points.iter().enumerate().rev() {
                    mark(chart.plotting_area(), nr, at(*value), colour(column))?;
                }
            }
            Ok(())
        },
    )
}

fn bars(outcome: &Outcome, cell: &str, figure: Figure, axis: &str) -> Result<Option<String>> {
    let figures = figures(outcome, |column| column.summary(cell, figure));
    let most = figures
        .iter()
        .map(|(_, summary)| summary.median)
        .fold(0.0, f64::max);
    let range = 0.0..if most > 0.0 { most * 1.2 } else { 1.0 };
    rows(&titles(&figures), &[], (range, axis), |chart| {
        for (row, (column, summary)) in figures.iter().enumerate() {
            let corners = [
                (0.0, SegmentValue::Exact(row)),
                (summary.median, SegmentValue::Exact(row + 1)),
            ];
            let mut bar = Rectangle::new(corners, colour(column).filled());
            bar.set_margin(5, 5, 0, 0);
            let half = summary.spread.unwrap_or(0.0) / 2.0;
            let (low, high) = ((summary.median - half).max(0.0), summary.median + half);
            let at = |value| (value, SegmentValue::CenterOf(row));
            let spread = |style: ShapeStyle| PathElement::new([at(low), at(high)], style);
            let area = chart.plotting_area();
            area.draw(&bar)?;
            // Seen on dark bars and beside them.
            area.draw(&spread(WHITE.stroke_width(4)))?;
            area.draw(&spread(INK.stroke_width(2)))?;
            let median = Text::new(label(&summary.median), (6, -7), FONT);
            area.draw(&(EmptyElement::at(at(high)) + median))?;
        }
        Ok(())
    })
}

fn shares(outcome: &Outcome) -> Result<Option<String>> {
    let shares = figures(outcome, |column| {
        let share = |level| Some(column.summary("weights", Figure::Share(level))?.median);
        (0..LEVELS.len()).map(share).collect::<Option<Vec<f64>>>()
    });
    if shares.is_empty() {
        return Ok(None);
    }
    let mut names = titles(&shares);
    names.push("ideal");
    let ideal = ideal().map(|share| share * 100.0).to_vec();
    let keys = [
        (3, SHADES[0], "nice -5"),
        (3, SHADES[1], "nice 0"),
        (3, SHADES[2], "nice 5"),
        (3, SHADES[3], "nice 10"),
    ];
    rows(
        &names,
        &keys,
        (0.0..100.0, "share of all work, %"),
        |chart| {
            let stacks = shares.iter().map(|(_, shares)| shares).chain([&ideal]);
            for (row, shares) in stacks.enumerate() {
                let mut sum = 0.0;
                for (share, shade) in shares.iter().zip(SHADES) {
                    let corners = [
                        (sum, SegmentValue::Exact(row)),
                        (sum + share, SegmentValue::Exact(row + 1)),
                    ];
                    sum += share;
                    let mut part = Rectangle::new(corners, shade.filled());
                    part.set_margin(4, 4, 0, 1);
                    chart.plotting_area().draw(&part)?;
                }
            }
            Ok(())
        },
    )
}

/// The cells whose names begin like this, with their saturation.
fn levels(prefix: &str) -> Vec<(&'static str, f64)> {
    let cells = CELLS.iter().filter(|cell| cell.id.starts_with(prefix));
    cells
        .filter_map(|cell| match cell.work {
            Work::Frame(level) | Work::Requests(level) => Some((cell.id, level)),
            _ => None,
        })
        .collect()
}

fn saturation(
    outcome: &Outcome,
    prefix: &str,
    figure: Figure,
    axis: &str,
) -> Result<Option<String>> {
    let levels = levels(prefix);
    let mut lines = figures(outcome, |column| {
        let at = |(cell, level): &(&str, f64)| Some((*level, column.summary(cell, figure)?.median));
        let points: Vec<(f64, f64)> = levels.iter().filter_map(at).collect();
        (points.len() >= 2).then_some(points)
    });
    let end = |points: &[(f64, f64)]| points.last().map_or(0.0, |(_, value)| *value);
    lines.sort_by(|(_, a), (_, b)| end(b).total_cmp(&end(a)));
    if lines.is_empty() {
        return Ok(None);
    }
    let up = around(
        lines
            .iter()
            .flat_map(|(_, points)| points.iter().map(|(_, value)| *value)),
    );
    let least = up.start;
    let wide = levels.iter().map(|(_, level)| *level).fold(0.0, f64::max);
    let keys: Vec<Key> = (0..)
        .zip(&lines)
        .map(|(nr, (column, _))| (nr, colour(column), column.scheduler.title))
        .collect();
    let mut text = String::new();
    {
        let whole = SVGBackend::with_string(&mut text, (WIDTH, 400)).into_drawing_area();
        whole.fill(&WHITE)?;
        let (area, right) = whole.split_horizontally(WIDTH - 140);
        legend(&right, &keys, (12, 30), (0, 24))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(46)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..wide * 1.05, up.log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(FONT.into_font().color(&INK))
            .x_desc("for each CPU")
            .y_desc(axis)
            .x_label_formatter(&|level| format!("{}x", label(level)))
            .y_label_formatter(&label)
            .draw()?;
        for (nr, (column, points)) in lines.iter().enumerate() {
            let points = points
                .iter()
                .map(|(level, value)| (*level, value.max(least)));
            let line = colour(column).stroke_width(thickness(column));
            chart.draw_series(LineSeries::new(points.clone(), line))?;
            for at in points {
                mark(chart.plotting_area(), nr, at, colour(column))?;
            }
        }
        whole.present()?;
    }
    Ok(Some(text))
}

/// Three significant digits, and no zeroes after the point.
fn label(value: &f64) -> String {
    if *value == 0.0 {
        return "0".to_owned();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 6);
    let unit = 10_f64.powi(digits);
    format!("{}", (value * unit).round() / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::outcome;

    #[test]
    fn labels_are_short() {
        let labels = [0.0, 0.001, 0.05, 1.0, 2.5, 1234.0, 12.0].map(|value| label(&value));
        assert_eq!(labels, ["0", "0.001", "0.05", "1", "2.5", "1234", "12"]);
    }

    #[test]
    fn every_scheduler_with_figures_is_in_every_plot() -> Result<()> {
        let outcome = outcome();
        for plot in &PLOTS {
            let text = plot.draw(&outcome)?.unwrap_or_default();
            for column in &outcome.columns {
                let has = match plot.kind {
                    Percentiles(cell, ..) | Bars(cell, ..) => CELLS
                        .iter()
                        .any(|it| it.id == cell && it.applies_to(column.scheduler)),
                    Saturation(prefix, ..) => CELLS
                        .iter()
                        .any(|it| it.id.starts_with(prefix) && it.applies_to(column.scheduler)),
                    Shares => CELLS
                        .iter()
                        .any(|it| it.id == "weights" && it.applies_to(column.scheduler)),
                };
                assert_eq!(
                    text.contains(column.scheduler.title),
                    has,
                    "{} {}",
                    plot.name,
                    column.scheduler.id
                );
            }
            assert!(
                !text.contains("NaN") && !text.contains("inf"),
                "{}",
                plot.name
            );
        }
        Ok(())
    }

    #[test]
    fn figures_of_nought_are_drawn() -> Result<()> {
        let mut outcome = outcome();
        let samples = outcome
            .columns
            .iter_mut()
            .flat_map(|column| &mut column.samples);
        samples
            .flat_map(|sample| sample.figures.values_mut())
            .for_each(|value| *value = 0.0);
        for plot in &PLOTS {
            let text = plot.draw(&outcome)?.unwrap_or_default();
            assert!(
                text.contains("EEVDF") || text.contains("scx_metronome"),
                "{}",
                plot.name
            );
            assert!(
                !text.contains("NaN") && !text.contains("inf"),
                "{}",
                plot.name
            );
        }
        Ok(())
    }

    #[test]
    fn without_samples_there_is_no_plot() -> Result<()> {
        let mut outcome = outcome();
        outcome
            .columns
            .iter_mut()
            .for_each(|column| column.samples.clear());
        for plot in &PLOTS {
            assert_eq!(plot.draw(&outcome)?, None);
        }
        Ok(())
    }
}
