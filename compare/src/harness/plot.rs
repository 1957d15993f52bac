//! Plots as SVG text.
//!
//! Nine lines in nine colours cannot be told apart by everybody. So each scheduler has a row of its
//! own wherever a plot allows it, and where lines cross each has a colour (Okabe and Ito's, made
//! for colour-blind readers), a mark, and its name at its end.

use crate::harness::cell::{Cell, share_key};
use crate::harness::result::{Column, Outcome};
use crate::harness::scheduler::Kind;
use crate::harness::stats::Summary;
use crate::weights::{LEVELS, ideal};
use std::fmt::Write;

/// A finished drawing.
struct Svg {
    body: String,
    width: f64,
    height: f64,
}

const INK: &str = "#1a1a1a";
const QUIET: &str = "#5c5c5c";
const GRID: &str = "#dcdcdc";
/// Of a character, on average, at 12 px; to keep texts apart.
const CHARACTER: f64 = 6.8;

#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Disc,
    Square,
    Diamond,
    Up,
    Down,
    Ring,
    Bar,
    Cross,
    Box,
}

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self {
            body: String::new(),
            width,
            height,
        }
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, style: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ = write!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" {style}>{text}</text>"#
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, width: f64) {
        let _ = write!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        );
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let width = width.max(0.0);
        let _ = write!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
        );
    }

    fn polyline(&mut self, points: &[(f64, f64)], colour: &str, width: f64) {
        let points: Vec<_> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        let _ = write!(
            self.body,
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>"#
        );
    }

    fn mark(&mut self, mark: Mark, (x, y): (f64, f64), colour: &str) {
        let path = |points: &[(f64, f64)]| {
            let points: Vec<_> = points
                .iter()
                .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy))
                .collect();
            format!(
                r#"<polygon points="{}" fill="{colour}" stroke="white" stroke-width="0.7"/>"#,
                points.join(" ")
            )
        };
        let shape = match mark {
            Mark::Disc => format!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{colour}" stroke="white" stroke-width="0.7"/>"#
            ),
            Mark::Ring => format!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.6" fill="white" stroke="{colour}" stroke-width="1.8"/>"#
            ),
            Mark::Box => format!(
                r#"<rect x="{:.1}" y="{:.1}" width="7" height="7" fill="white" stroke="{colour}" stroke-width="1.8"/>"#,
                x - 3.5,
                y - 3.5
            ),
            Mark::Square => path(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
            Mark::Diamond => path(&[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)]),
            Mark::Up => path(&[(0.0, -5.0), (4.8, 3.6), (-4.8, 3.6)]),
            Mark::Down => path(&[(0.0, 5.0), (4.8, -3.6), (-4.8, -3.6)]),
            Mark::Bar => format!(
                r#"<path d="M{x:.1} {:.1}V{:.1}" stroke="{colour}" stroke-width="2.4"/>"#,
                y - 6.0,
                y + 6.0
            ),
            Mark::Cross => format!(
                r#"<path d="M{:.1} {:.1}L{:.1} {:.1}M{:.1} {:.1}L{:.1} {:.1}" stroke="{colour}" stroke-width="2.2"/>"#,
                x - 4.0,
                y - 4.0,
                x + 4.0,
                y + 4.0,
                x - 4.0,
                y + 4.0,
                x + 4.0,
                y - 4.0
            ),
        };
        self.body += &shape;
    }

    fn finish(self, title: &str) -> String {
        let Self {
            body,
            width,
            height,
        } = self;
        let title = escape(title);
        format!(
            r#"<svg viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" role="img" aria-label="{title}" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">{body}</svg>"#
        )
    }
}

/// For text in HTML and SVG.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A scheduler's colour and mark.
fn look(column: &Column) -> (&'static str, Mark) {
    match column.scheduler.id {
        "eevdf" => ("#000000", Mark::Disc),
        "fifo" => ("#7a7a7a", Mark::Ring),
        "scx_metronome" => ("#d55e00", Mark::Diamond),
        "scx_rustland" => ("#0072b2", Mark::Square),
        "scx_rlfifo" => ("#56b4e9", Mark::Box),
        "scx_bpfland" => ("#009e73", Mark::Up),
        "scx_lavd" => ("#b8860b", Mark::Down),
        "scx_cosmos" => ("#cc79a7", Mark::Cross),
        _ => ("#7b4f9d", Mark::Bar),
    }
}

fn is_ours(column: &Column) -> bool {
    column.scheduler.kind == Kind::Metronome
}

/// From a figure to a place.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// From 0 to a little more than the largest.
    fn linear(largest: f64, from: f64, to: f64) -> Self {
        Self {
            low: 0.0,
            high: if largest > 0.0 { largest * 1.05 } else { 1.0 },
            from,
            to,
            logarithmic: false,
        }
    }

    /// Whole steps of 1, 2, 5, so that the ends have labels.
    fn logarithmic(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values: Vec<f64> = values.filter(|x| *x > 0.0).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let (least, most) = if values.is_empty() {
            (1.0, 10.0)
        } else {
            (least, most)
        };
        let low = steps(least / 10.0, least).last().copied().unwrap_or(least);
        let high = steps(most, most * 10.0).first().copied().unwrap_or(most);
        Self {
            low,
            high: if high > low { high } else { low * 10.0 },
            from,
            to,
            logarithmic: true,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    /// Where labels go, with at least `apart` between two.
    fn ticks(&self, apart: f64) -> Vec<f64> {
        let candidates = if self.logarithmic {
            let all = steps(self.low, self.high);
            let room = (self.to - self.from).abs() / apart;
            if all.len() as f64 <= room {
                all
            } else {
                all.into_iter().filter(|x| is_decade(*x)).collect()
            }
        } else {
            let wanted = self.high / ((self.to - self.from).abs() / apart).max(1.0);
            let step = steps(wanted, wanted * 10.0)
                .first()
                .copied()
                .unwrap_or(wanted);
            (0..=(self.high / step) as u32)
                .map(|index| f64::from(index) * step)
                .collect()
        };
        let inside = candidates
            .into_iter()
            .filter(|x| *x >= self.low * 0.999 && *x <= self.high * 1.001);
        inside.collect()
    }
}

/// 1, 2 and 5 times powers of ten, from `low` to `high`.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(decade)));
    all.filter(|x| *x >= low * 0.999 && *x <= high * 1.001)
        .collect()
}

fn is_decade(x: f64) -> bool {
    (x.log10() - x.log10().round()).abs() < 1e-6
}

/// Three significant digits, and no zeroes after the point.
fn label(x: f64) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 6);
    let text = format!("{x:.*}", digits.unsigned_abs() as usize);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

const ROW: f64 = 26.0;
const LEFT: f64 = 126.0;
const WIDTH: f64 = 560.0;

fn row_label(svg: &mut Svg, column: &Column, y: f64) {
    let style = if is_ours(column) {
        r#"font-weight="bold""#
    } else {
        ""
    };
    svg.text(
        (LEFT - 12.0, y + 4.0),
        Anchor::End,
        style,
        column.scheduler.title,
    );
}

fn across(svg: &mut Svg, scale: &Scale, (top, bottom): (f64, f64), title: &str) {
    for tick in scale.ticks(46.0) {
        let x = scale.place(tick);
        svg.line((x, top), (x, bottom), GRID, 1.0);
        svg.text((x, bottom + 16.0), Anchor::Middle, "", &label(tick));
    }
    let middle = f64::midpoint(scale.from, scale.to);
    svg.text(
        (middle, bottom + 34.0),
        Anchor::Middle,
        &format!(r#"fill="{QUIET}""#),
        title,
    );
}

/// The percentiles, from the middle outwards.
const PERCENTILES: [(&str, &str, Mark); 5] = [
    ("p50", "p50", Mark::Disc),
    ("p90", "p90", Mark::Up),
    ("p99", "p99", Mark::Diamond),
    ("p99_9", "p99.9", Mark::Square),
    ("max", "max", Mark::Bar),
];

/// One row for each scheduler: a distribution's percentiles, medians over the rounds. None without
/// figures.
#[must_use]
pub fn distribution(outcome: &Outcome, cell: &str, name: &str, what: &str) -> Option<String> {
    let rows: Vec<(&Column, Vec<f64>)> = outcome
        .columns
        .iter()
        .filter_map(|column| {
            let at = |key: &str| Some(column.summary(cell, &format!("{name}.{key}"))?.median);
            let points: Option<Vec<f64>> = PERCENTILES.iter().map(|(key, ..)| at(key)).collect();
            Some((column, points?))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let (top, bottom) = (34.0, 34.0 + ROW * rows.len() as f64);
    let mut svg = Svg::new(WIDTH, bottom + 44.0);
    let all = rows.iter().flat_map(|(_, points)| points.iter().copied());
    let scale = Scale::logarithmic(all, LEFT, WIDTH - 24.0);
    across(
        &mut svg,
        &scale,
        (top - 6.0, bottom),
        &format!("{what}, ms (logarithmic)"),
    );
    let mut x = LEFT;
    for (_, title, mark) in PERCENTILES {
        svg.mark(mark, (x + 5.0, 12.0), INK);
        svg.text((x + 14.0, 16.0), Anchor::Start, "", title);
        x += 34.0 + title.len() as f64 * CHARACTER;
    }
    for (index, (column, points)) in rows.iter().enumerate() {
        let y = top + ROW * (index as f64 + 0.5);
        let (colour, _) = look(column);
        row_label(&mut svg, column, y);
        let ends = (scale.place(points[0]), scale.place(points[4]));
        svg.line(
            (ends.0, y),
            (ends.1, y),
            colour,
            if is_ours(column) { 3.0 } else { 1.5 },
        );
        // The outer ones first: where they coincide the inner ones are seen.
        for (point, (_, _, mark)) in points.iter().zip(PERCENTILES).rev() {
            svg.mark(mark, (scale.place(*point), y), colour);
        }
    }
    Some(svg.finish(&format!("{what} by scheduler")))
}

/// A figure over saturation: a line for each scheduler, its name at its end. None with fewer than
/// two levels.
#[must_use]
pub fn saturation(
    outcome: &Outcome,
    cells: &[(&str, f64)],
    key: &str,
    what: &str,
    axis: &str,
) -> Option<String> {
    let lines: Vec<(&Column, Vec<(f64, f64)>)> = outcome
        .columns
        .iter()
        .map(|column| {
            let points = cells
                .iter()
                .filter_map(|(cell, level)| Some((*level, column.summary(cell, key)?.median)));
            (column, points.collect())
        })
        .filter(|(_, points): &(_, Vec<_>)| points.len() >= 2)
        .collect();
    if lines.is_empty() {
        return None;
    }
    let (left, right, top, bottom) = (62.0, WIDTH - 142.0, 16.0, 316.0);
    let mut svg = Svg::new(WIDTH, bottom + 44.0);
    let values = lines
        .iter()
        .flat_map(|(_, points)| points.iter().map(|(_, y)| *y));
    let up = Scale::logarithmic(values, bottom, top);
    let wide = cells.iter().map(|(_, level)| *level).fold(0.0, f64::max);
    let along = |level: f64| left + 14.0 + (right - left - 24.0) * level / wide;
    for tick in up.ticks(18.0) {
        let y = up.place(tick);
        svg.line((left, y), (right, y), GRID, 1.0);
        svg.text((left - 8.0, y + 4.0), Anchor::End, "", &label(tick));
    }
    for (_, level) in cells {
        svg.line(
            (along(*level), bottom),
            (along(*level), bottom + 4.0),
            INK,
            1.0,
        );
        svg.text(
            (along(*level), bottom + 18.0),
            Anchor::Middle,
            "",
            &format!("{level}x"),
        );
    }
    let quiet = format!(r#"fill="{QUIET}""#);
    svg.text(
        (f64::midpoint(left, right), bottom + 36.0),
        Anchor::Middle,
        &quiet,
        axis,
    );
    let turned = format!(
        r#"fill="{QUIET}" transform="rotate(-90 14 {0})""#,
        f64::midpoint(top, bottom)
    );
    svg.text(
        (14.0, f64::midpoint(top, bottom)),
        Anchor::Middle,
        &turned,
        &format!("{what} (logarithmic)"),
    );
    draw_lines(
        &mut svg,
        &lines,
        |(level, value)| (along(level), up.place(value)),
        (top, bottom),
    );
    Some(svg.finish(&format!("{what} over saturation")))
}

fn draw_lines(
    svg: &mut Svg,
    lines: &[(&Column, Vec<(f64, f64)>)],
    place: impl Fn((f64, f64)) -> (f64, f64),
    (top, bottom): (f64, f64),
) {
    let mut ends = Vec::new();
    // Ours last, so that nothing covers it.
    let (ours, others): (Vec<_>, Vec<_>) = lines.iter().partition(|(column, _)| is_ours(column));
    for (column, points) in others.into_iter().chain(ours) {
        let (colour, mark) = look(column);
        let points: Vec<_> = points.iter().map(|point| place(*point)).collect();
        svg.polyline(&points, colour, if is_ours(column) { 3.0 } else { 1.6 });
        points
            .iter()
            .for_each(|point| svg.mark(mark, *point, colour));
        ends.extend(points.last().map(|end| (*column, *end)));
    }
    ends.sort_by(|a, b| a.1.1.total_cmp(&b.1.1));
    let wanted: Vec<f64> = ends.iter().map(|(_, (_, y))| *y).collect();
    for ((column, (x, y)), text) in ends.iter().zip(spread_out(&wanted, 15.0, (top, bottom))) {
        let (colour, mark) = look(column);
        svg.line((x + 6.0, *y), (x + 20.0, text), colour, 0.8);
        svg.mark(mark, (x + 26.0, text), colour);
        let weight = if is_ours(column) { "bold" } else { "normal" };
        let style = format!(r#"font-weight="{weight}""#);
        svg.text(
            (x + 34.0, text + 4.0),
            Anchor::Start,
            &style,
            column.scheduler.title,
        );
    }
}

/// Ascending places, moved so that each is at least `apart` below the one before it, and all within
/// the bounds if they can be.
fn spread_out(wanted: &[f64], apart: f64, (top, bottom): (f64, f64)) -> Vec<f64> {
    let mut places = wanted.to_vec();
    let mut least = top;
    for place in &mut places {
        *place = place.max(least);
        least = *place + apart;
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - apart;
    }
    places
}

/// A bar for each scheduler, with a line as long as its spread at its end. None without figures.
#[must_use]
pub fn bars(outcome: &Outcome, cell: &str, key: &str, what: &str) -> Option<String> {
    let rows: Vec<_> = outcome
        .columns
        .iter()
        .filter_map(|column| Some((column, column.summary(cell, key)?)))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let (top, bottom) = (10.0, 10.0 + ROW * rows.len() as f64);
    let mut svg = Svg::new(WIDTH, bottom + 44.0);
    let half = |summary: &Summary| summary.spread.unwrap_or(0.0) / 2.0;
    let ends = rows
        .iter()
        .map(|(_, summary)| summary.median + half(summary));
    let scale = Scale::linear(ends.fold(0.0, f64::max), LEFT, WIDTH - 60.0);
    across(&mut svg, &scale, (top, bottom), what);
    for (index, (column, summary)) in rows.iter().enumerate() {
        let y = top + ROW * (index as f64 + 0.5);
        row_label(&mut svg, column, y);
        let end = scale.place(summary.median);
        svg.rect((LEFT, y - 8.0), (end - LEFT, 16.0), look(column).0);
        let low = scale.place((summary.median - half(summary)).max(0.0));
        let high = scale.place(summary.median + half(summary));
        // Seen on dark bars and beside them.
        svg.line((low, y), (high, y), "white", 4.0);
        svg.line((low, y), (high, y), INK, 1.5);
        svg.text(
            (high + 6.0, y + 4.0),
            Anchor::Start,
            "",
            &label(summary.median),
        );
    }
    Some(svg.finish(what))
}

/// Of nice -5, 0, 5, 10: light to dark, so that they differ without colour too.
const SHADES: [(&str, &str); 4] = [
    ("#08306b", "white"),
    ("#2f7ebc", "white"),
    ("#8fc1de", INK),
    ("#dceaf6", INK),
];

/// How the CPUs were shared between nice levels, the ideal above. None without figures.
#[must_use]
pub fn shares(outcome: &Outcome) -> Option<String> {
    let of = |column: &Column| -> Option<[f64; 4]> {
        let mut shares = [0.0; 4];
        for (level, share) in shares.iter_mut().enumerate() {
            *share = column.summary("weights", &share_key(level))?.median;
        }
        Some(shares)
    };
    let rows: Vec<_> = outcome
        .columns
        .iter()
        .filter_map(|column| Some((column, of(column)?)))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let (top, bottom) = (34.0, 40.0 + ROW * (rows.len() + 1) as f64);
    let mut svg = Svg::new(WIDTH, bottom + 44.0);
    let scale = Scale {
        low: 0.0,
        high: 100.0,
        from: LEFT,
        to: WIDTH - 24.0,
        logarithmic: false,
    };
    across(&mut svg, &scale, (top, bottom), "share of all work, %");
    let mut x = LEFT;
    for ((nice, _), (fill, _)) in LEVELS.iter().zip(SHADES) {
        svg.rect((x, 6.0), (12.0, 12.0), fill);
        svg.text((x + 17.0, 16.0), Anchor::Start, "", &format!("nice {nice}"));
        x += 84.0;
    }
    let y = top + ROW * 0.5;
    svg.text(
        (LEFT - 12.0, y + 4.0),
        Anchor::End,
        r#"font-style="italic""#,
        "ideal",
    );
    stack(&mut svg, &scale, y, ideal().map(|share| share * 100.0));
    for (index, (column, shares)) in rows.iter().enumerate() {
        let y = top + 6.0 + ROW * (index as f64 + 1.5);
        row_label(&mut svg, column, y);
        stack(&mut svg, &scale, y, *shares);
    }
    Some(svg.finish("shares of nice levels by scheduler"))
}

fn stack(svg: &mut Svg, scale: &Scale, y: f64, shares: [f64; 4]) {
    let mut sum = 0.0;
    for (share, (fill, ink)) in shares.into_iter().zip(SHADES) {
        let (from, to) = (scale.place(sum), scale.place(sum + share));
        svg.rect((from, y - 9.0), (to - from - 1.0, 18.0), fill);
        let text = label((share * 10.0).round() / 10.0);
        if to - from > text.len() as f64 * CHARACTER + 4.0 {
            svg.text(
                (f64::midpoint(from, to), y + 4.0),
                Anchor::Middle,
                &format!(r#"fill="{ink}""#),
                &text,
            );
        }
        sum += share;
    }
}

/// The cells of one kind of work with their levels.
#[must_use]
pub fn levels(prefix: &str) -> Vec<(&'static str, f64)> {
    use crate::harness::cell::{CELLS, Work};
    let level = |cell: &'static Cell| match cell.work {
        Work::Frame(level) | Work::Requests(level) => Some((cell.id, level)),
        _ => None,
    };
    CELLS
        .iter()
        .filter(|cell| cell.id.starts_with(prefix))
        .filter_map(level)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::result::tests::outcome;

    #[test]
    fn labels_are_short() {
        let labels = [0.0, 0.001, 0.05, 1.0, 2.5, 1234.0, 12.0].map(label);
        assert_eq!(labels, ["0", "0.001", "0.05", "1", "2.5", "1234", "12"]);
    }

    #[test]
    fn scales_reach_from_end_to_end() {
        let log = Scale::logarithmic([0.3, 40.0].into_iter(), 0.0, 100.0);
        assert_eq!((log.low, log.high), (0.2, 50.0));
        assert_eq!((log.place(0.2), log.place(50.0)), (0.0, 100.0));
        let linear = Scale::linear(100.0, 0.0, 210.0);
        assert_eq!(linear.place(100.0), 200.0);
        assert!(
            linear
                .ticks(40.0)
                .windows(2)
                .all(|pair| linear.place(pair[1]) - linear.place(pair[0]) >= 39.9)
        );
    }

    #[test]
    fn nothing_and_nought_can_be_drawn() {
        assert!(
            Scale::logarithmic([].into_iter(), 0.0, 1.0)
                .place(5.0)
                .is_finite()
        );
        assert!(
            Scale::logarithmic([0.0, 3.0].into_iter(), 0.0, 1.0)
                .place(0.0)
                .is_finite()
        );
        assert!(Scale::linear(0.0, 0.0, 1.0).place(0.0).is_finite());
    }

    #[test]
    fn texts_keep_apart() {
        let places = spread_out(&[10.0, 11.0, 12.0, 99.0], 15.0, (0.0, 100.0));
        assert!(
            places.windows(2).all(|pair| pair[1] - pair[0] >= 15.0),
            "{places:?}"
        );
        assert!(
            places.iter().all(|place| (0.0..=100.0).contains(place)),
            "{places:?}"
        );
        assert_eq!(spread_out(&[90.0, 95.0], 15.0, (0.0, 100.0)), [85.0, 100.0]);
    }

    #[test]
    fn every_scheduler_is_in_every_plot() {
        let outcome = outcome();
        let plots = [
            distribution(&outcome, "frame-1.5x", "frame", "frame completion"),
            saturation(
                &outcome,
                &levels("frame"),
                "frame.p99",
                "frame p99, ms",
                "hogs for each CPU",
            ),
            bars(&outcome, "frame-1.5x", "pingpong", "trips/s"),
        ];
        for plot in plots {
            let plot = plot.unwrap_or_default();
            assert!(
                outcome
                    .columns
                    .iter()
                    .all(|column| plot.contains(column.scheduler.title)),
                "{plot}"
            );
            assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
        }
        assert!(
            shares(&outcome).is_some_and(|plot| plot.contains("ideal") && !plot.contains("NaN"))
        );
    }

    #[test]
    fn without_samples_there_is_no_plot() {
        let mut outcome = outcome();
        outcome
            .columns
            .iter_mut()
            .for_each(|column| column.samples.clear());
        assert_eq!(distribution(&outcome, "frame-1.5x", "frame", ""), None);
        assert_eq!(
            saturation(&outcome, &levels("frame"), "frame.p99", "", ""),
            None
        );
        assert_eq!(bars(&outcome, "pipe", "us", ""), None);
        assert_eq!(shares(&outcome), None);
    }
}
