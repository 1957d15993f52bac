//! A picture of runs: how long each frame took, over time.

use crate::report::Report;
use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH: u32 = 720;
/// Of each run.
const HEIGHT: u32 = 190;
const FONT: (&str, u32) = ("sans-serif", 14);
const GRID: RGBColor = RGBColor(0xdc, 0xdc, 0xdc);
// Okabe and Ito's, made for colour-blind readers.
const IN_TIME: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const LATE: RGBColor = RGBColor(0xd5, 0x5e, 0x00);

/// The runs below one another as SVG, with one scale: a bar for each recorded frame, of another
/// colour if it was complete only after the next was due.
///
/// # Errors
/// It cannot be drawn.
pub fn draw(reports: &[Report]) -> Result<String> {
    let bars: Vec<Vec<Bar>> = reports.iter().map(bars).collect();
    let all = || bars.iter().flatten();
    let end = all().map(|bar| bar.at).fold(1.0, f64::max);
    let longest = all().map(|bar| bar.ms).fold(1.0, f64::max);
    let mut text = String::new();
    {
        let size = (WIDTH, HEIGHT * reports.len().max(1) as u32);
        let whole = SVGBackend::with_string(&mut text, size).into_drawing_area();
        whole.fill(&WHITE)?;
        let rows = whole.split_evenly((reports.len().max(1), 1));
        for ((row, report), bars) in rows.iter().zip(reports).zip(&bars) {
            draw_run(row, report, bars, (end, 1.05 * longest))?;
        }
        whole.present()?;
    }
    Ok(text)
}

/// A frame.
struct Bar {
    /// When it was due, seconds since the first that was recorded.
    at: f64,
    ms: f64,
}

fn bars(report: &Report) -> Vec<Bar> {
    let warmup = report.config.warmup;
    let bar = |&(due, end): &(f64, f64)| Bar {
        at: due / 1e3 - warmup,
        ms: end - due,
    };
    let each = report.frame.each_ms.iter().map(bar);
    each.filter(|bar| bar.at >= 0.0).collect()
}

fn draw_run(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    report: &Report,
    bars: &[Bar],
    (end, longest): (f64, f64),
) -> Result<()> {
    let due = 1e3 / f64::from(report.config.hz.max(1));
    let title = format!("{}: {} frames missed", report.label, report.frame.missed);
    let mut chart = ChartBuilder::on(area)
        .caption(title, FONT)
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..end, 0.0..longest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .label_style(FONT)
        .x_desc("s")
        .y_desc("ms for a frame")
        .y_labels(5)
        .draw()?;
    chart.draw_series(bars.iter().map(|bar| {
        let colour = if bar.ms > due { LATE } else { IN_TIME };
        PathElement::new([(bar.at, 0.0), (bar.at, bar.ms)], colour.stroke_width(2))
    }))?;
    chart.draw_series(LineSeries::new([(0.0, due), (end, due)], BLACK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn late_frames_are_told_from_those_in_time() -> Result<()> {
        let mut report = sample("a");
        report.config.warmup = 0.0;
        report.frame.each_ms = vec![(0.0, 8.0), (16.667, 24.0), (33.333, 55.0)];
        let picture = draw(&[report.clone(), report])?;
        assert!(picture.starts_with("<svg") && picture.contains("a: 3 frames missed"));
        let count = |colour| picture.matches(&format!("stroke=\"{colour}\"")).count();
        assert_eq!((count("#0072B2"), count("#D55E00")), (4, 2), "{picture}");
        Ok(())
    }

    #[test]
    fn runs_without_frames_are_drawn() -> Result<()> {
        let mut report = sample("a");
        report.frame.each_ms.clear();
        assert!(draw(&[report])?.contains("</svg>"));
        assert!(draw(&[])?.contains("</svg>"));
        Ok(())
    }
}
