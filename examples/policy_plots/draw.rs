//! Plots as SVG. Colours are Okabe and Ito's, made for colour-blind readers, and lines have marks
//! of their own.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figures::{FAIR, LEVELS, Line, Shares};

const SIZE: (u32, u32) = (760, 420);
const FONT: (&str, u32) = ("sans-serif", 15);
const INK: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
const GRID: RGBColor = RGBColor(0xdc, 0xdc, 0xdc);
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
];

/// What is around the lines of a plot.
pub(crate) struct Frame {
    x: Axis,
    y: Axis,
    legend: (SeriesLabelPosition, &'static str),
    /// A level to compare with.
    level: Option<f64>,
}

/// Its title with the unit, and from where to where it goes.
struct Axis {
    title: &'static str,
    range: Range<f64>,
    is_logarithmic: bool,
}

const fn linear(title: &'static str, range: Range<f64>) -> Axis {
    Axis {
        title,
        range,
        is_logarithmic: false,
    }
}

const fn logarithmic(title: &'static str, range: Range<f64>) -> Axis {
    Axis {
        title,
        range,
        is_logarithmic: true,
    }
}

pub(crate) const DELAYS: Frame = Frame {
    x: linear("hogs beside the game, on 3 CPUs", 0.0..25.0),
    y: logarithmic("wake-up delay of the game, p99, ms", 0.0005..100.0),
    legend: (SeriesLabelPosition::LowerRight, ""),
    level: None,
};

pub(crate) const SLEEPERS: Frame = Frame {
    x: logarithmic("CPU time before each sleep, ms", 0.08..20.0),
    y: linear("what the sleeper gets, % of a CPU", 0.0..60.0),
    legend: (SeriesLabelPosition::LowerRight, "fair share"),
    level: Some(100.0 * FAIR),
};

pub(crate) const CROWDS: Frame = Frame {
    x: linear("tasks in the crowd, on 3 CPUs", 0.0..410.0),
    y: linear("longest wait, ms", 0.0..200.0),
    legend: (SeriesLabelPosition::LowerRight, "32 lags"),
    level: Some(160.0),
};

pub(crate) const CHAINS: Frame = Frame {
    x: linear(
        "threads that wake each other for a frame, on 3 CPUs",
        0.0..12.5,
    ),
    y: linear("time for the frame, median, ms", 0.0..18.0),
    legend: (SeriesLabelPosition::UpperLeft, ""),
    level: None,
};

/// Lines over a number.
pub(crate) fn lines(path: &Path, frame: &Frame, lines: &[Line]) -> Result<(), Box<dyn Error>> {
    let (x, y) = (frame.x.range.clone(), frame.y.range.clone());
    match (frame.x.is_logarithmic, frame.y.is_logarithmic) {
        (true, true) => draw(path, frame, lines, x.log_scale(), y.log_scale()),
        (true, false) => draw(path, frame, lines, x.log_scale(), y),
        (false, true) => draw(path, frame, lines, x, y.log_scale()),
        (false, false) => draw(path, frame, lines, x, y),
    }
}

fn draw<X, Y>(path: &Path, frame: &Frame, lines: &[Line], x: X, y: Y) -> Result<(), Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(FONT.into_font().color(&INK))
        .x_desc(frame.x.title)
        .y_desc(frame.y.title)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()?;
    if let Some(level) = frame.level {
        let ends = [frame.x.range.start, frame.x.range.end].map(|x| (x, level));
        chart
            .draw_series(DashedLineSeries::new(ends, 6, 4, INK.stroke_width(1)))?
            .label(frame.legend.1)
            .legend(|(x, y)| {
                let dash = |from| PathElement::new([(x + from, y), (x + from + 6, y)], INK);
                EmptyElement::at((0, 0)) + dash(0) + dash(10) + dash(20)
            });
    }
    for (nr, line) in lines.iter().enumerate() {
        let colour = COLOURS[nr % COLOURS.len()];
        let points = || line.points.iter().copied();
        chart.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
        // Each line has marks of its own, which are in the legend, too.
        macro_rules! mark {
            ($at:ident => $mark:expr) => {
                chart
                    .draw_series(points().map(|$at| $mark))?
                    .label(line.name.as_str())
                    .legend(move |(x, y)| {
                        let $at = (x + 12, y);
                        let line = PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2));
                        EmptyElement::at((0, 0)) + line + $mark
                    })
            };
        }
        match nr % 4 {
            0 => mark!(at => Circle::new(at, 4, colour.filled())),
            1 => mark!(at => TriangleMarker::new(at, 6, colour.filled())),
            2 => mark!(at => Cross::new(at, 4, colour.stroke_width(2))),
            _ => mark!(at => Circle::new(at, 4, colour.stroke_width(2))),
        };
    }
    draw_legend(&mut chart, frame.legend.0.clone())?;
    area.present()?;
    Ok(())
}

/// A bar for each nice level and row, the figure above it.
pub(crate) fn bars(path: &Path, rows: &[Shares]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..LEVELS.len() as f64, 0.0..80.0)?;
    // In the middle of its bars.
    let level = |x: &f64| match LEVELS.get(*x as usize) {
        Some((nice, weight)) if x.fract() == 0.5 => format!("nice {nice} (weight {weight})"),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(FONT.into_font().color(&INK))
        .x_labels(2 * LEVELS.len() + 1)
        .x_label_formatter(&level)
        .y_desc("share of all CPU time, %")
        .y_label_formatter(&label)
        .draw()?;
    let width = 0.26;
    for (nr, row) in rows.iter().enumerate() {
        let colour = COLOURS[nr % COLOURS.len()];
        let left = |level: usize| level as f64 + 0.11 + width * nr as f64;
        let bar = |(level, percent): (usize, &f64)| {
            let (left, right) = (left(level), left(level) + width - 0.02);
            Rectangle::new([(left, 0.0), (right, *percent)], colour.filled())
        };
        chart
            .draw_series(row.percent.iter().enumerate().map(bar))?
            .label(row.name.as_str())
            .legend(move |(x, y)| {
                Rectangle::new([(x + 4, y - 6), (x + 20, y + 6)], colour.filled())
            });
        let anchored = FONT
            .into_font()
            .color(&INK)
            .pos(Pos::new(HPos::Center, VPos::Bottom));
        let figure = |(level, percent): (usize, &f64)| {
            let at = (left(level) + width / 2.0, percent + 1.0);
            Text::new(format!("{percent:.1}"), at, anchored.clone())
        };
        chart.draw_series(row.percent.iter().enumerate().map(figure))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(28)
        .margin(14)
        .background_style(WHITE)
        .border_style(GRID)
        .label_font(FONT.into_font().color(&INK))
        .draw()?;
    area.present()?;
    Ok(())
}

/// As short as it can be.
fn label(value: &f64) -> String {
    format!("{}", (value * 10_000.0).round() / 10_000.0)
}

fn draw_legend<'a, X: Ranged, Y: Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Result<(), Box<dyn Error>> {
    chart
        .configure_series_labels()
        .position(position)
        .legend_area_size(32)
        .margin(14)
        .background_style(WHITE)
        .border_style(GRID)
        .label_font(FONT.into_font().color(&INK))
        .draw()?;
    Ok(())
}
