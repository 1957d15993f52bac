//! The result as one HTML page that needs nothing else.

use crate::harness::markdown;
use crate::harness::plot::{bars, distribution, escape, levels, saturation, shares};
use crate::harness::result::Outcome;
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1240px; margin: 2rem auto; padding: 0 1.5rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; border: 1px solid #dcdcdc; border-radius: 6px; padding: 12px; }
figcaption { font-weight: 600; margin-bottom: 8px; max-width: 560px; } figcaption span { font-weight: 400; color: #5c5c5c; }
figure svg { max-width: 100%; height: auto; display: block; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
td, th { padding: 3px 9px; border-bottom: 1px solid #e4e4e4; text-align: left; white-space: nowrap; }
td.wrap { white-space: normal; min-width: 20rem; } td.right, th.right { text-align: right; font-variant-numeric: tabular-nums; }
";

/// The page.
#[must_use]
pub fn render(outcome: &Outcome) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Side by side: CPU schedulers</title><style>{STYLE}</style></head><body>\n"
    );
    let text = markdown::render(outcome);
    let (before, after) = text.split_once("\n## Where another").unwrap_or((&text, ""));
    page += &html(before);
    page += "<h2>Plots</h2>\n<p>Medians over the rounds. Latencies: less is better, and the axes are logarithmic. The thin line at the end of a bar is as long as the spread. With few samples p99.9 is the longest.</p>\n<div class=\"plots\">\n";
    for (title, note, plot) in plots(outcome) {
        let (title, note) = (escape(title), escape(note));
        let _ = writeln!(
            page,
            "<figure><figcaption>{title} <span>{note}</span></figcaption>{plot}</figure>"
        );
    }
    page += "</div>\n";
    page += &html(&format!("## Where another{after}"));
    page + "</body></html>\n"
}

fn plots(outcome: &Outcome) -> Vec<(&'static str, &'static str, String)> {
    let mut plots = Vec::new();
    let mut add =
        |title, note, plot: Option<String>| plots.extend(plot.map(|plot| (title, note, plot)));
    let (frame, requests) = (levels("frame"), levels("requests"));
    let hogs = "CPU hogs for each CPU";
    let workers = "workers for each CPU";
    let one_and_a_half = "beside 1.5 hogs for each CPU and a ping-pong pair";

    add(
        "Frame completion",
        one_and_a_half,
        distribution(
            outcome,
            "frame-1.5x",
            "frame",
            "from due time to completion",
        ),
    );
    add(
        "Frame completion p99 over saturation",
        "",
        saturation(outcome, &frame, "frame.p99", "p99, ms", hogs),
    );
    add(
        "Audio wake-up",
        one_and_a_half,
        distribution(outcome, "frame-1.5x", "audio", "from due time to running"),
    );
    add(
        "Audio wake-up p99 over saturation",
        "",
        saturation(outcome, &frame, "audio.p99", "p99, ms", hogs),
    );
    add(
        "Input wake-up",
        one_and_a_half,
        distribution(outcome, "frame-1.5x", "input", "from event to running"),
    );
    add(
        "Input wake-up p99 over saturation",
        "",
        saturation(outcome, &frame, "input.p99", "p99, ms", hogs),
    );
    add(
        "Request wake-up",
        "1.5 workers for each CPU",
        distribution(
            outcome,
            "requests-1.5x",
            "wakeup",
            "from request to running",
        ),
    );
    add(
        "Request p99 over saturation",
        "",
        saturation(outcome, &requests, "request.p99", "p99, ms", workers),
    );
    add(
        "cyclictest wake-up",
        "SCHED_OTHER (SCHED_FIFO in its row), 2 hogs for each CPU",
        distribution(outcome, "cyclictest-2x", "wakeup", "wake-up latency"),
    );
    add(
        "Frame completion beside a build",
        "as many jobs as CPUs",
        distribution(
            outcome,
            "build-frame",
            "frame",
            "from due time to completion",
        ),
    );
    add(
        "Sharing between nice levels",
        "as many hogs of each level as CPUs",
        shares(outcome),
    );
    add(
        "Sharing between equal hogs",
        one_and_a_half,
        bars(
            outcome,
            "frame-1.5x",
            "hogs.fairness",
            "least work of a hog over most (1 is fair)",
        ),
    );
    add(
        "Hogs' work",
        one_and_a_half,
        bars(
            outcome,
            "frame-1.5x",
            "hogs.work",
            "units of work a second, all hogs (more is better)",
        ),
    );
    add(
        "Ping-pong",
        one_and_a_half,
        bars(
            outcome,
            "frame-1.5x",
            "pingpong",
            "round trips a second (more is better)",
        ),
    );
    add(
        "The scheduler's process",
        "CPU time, a spinning one's too",
        bars(
            outcome,
            "cost",
            "cpu",
            "ms of CPU time for 1,000 context switches (less is better)",
        ),
    );
    add(
        "The scheduler's BPF programs",
        "",
        bars(
            outcome,
            "cost",
            "bpf",
            "ms in BPF programs for 1,000 context switches (less is better)",
        ),
    );
    plots
}

/// The little Markdown that [`markdown`] writes: headings, tables, paragraphs, bold and code.
fn html(markdown: &str) -> String {
    let mut page = String::new();
    for block in markdown
        .split("\n\n")
        .map(str::trim)
        .filter(|block| !block.is_empty())
    {
        if block.starts_with('|') {
            page += &table(block);
        } else if let Some(title) = block.strip_prefix("## ") {
            let _ = writeln!(page, "<h2>{}</h2>", inline(title));
        } else if let Some(title) = block.strip_prefix("# ") {
            let _ = writeln!(page, "<h1>{}</h1>", inline(title));
        } else {
            let _ = writeln!(page, "<p>{}</p>", inline(block));
        }
    }
    page
}

fn table(block: &str) -> String {
    let mut rows = block.lines().map(cells);
    let titles = rows.next().unwrap_or_default();
    let right: Vec<bool> = rows
        .next()
        .unwrap_or_default()
        .iter()
        .map(|cell| cell.ends_with(':'))
        .collect();
    let class = |index: usize, cell: &str| match right.get(index) {
        Some(true) => " class=\"right\"",
        _ if cell.len() > 60 => " class=\"wrap\"",
        _ => "",
    };
    let row = |tag: &str, cells: &[String]| {
        let cells = cells
            .iter()
            .enumerate()
            .map(|(index, cell)| format!("<{tag}{}>{}</{tag}>", class(index, cell), inline(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let head = if titles.iter().all(String::is_empty) {
        String::new()
    } else {
        row("th", &titles)
    };
    let body: String = rows.map(|cells| row("td", &cells)).collect();
    format!("<div class=\"table\"><table>{head}{body}</table></div>\n")
}

fn cells(line: &str) -> Vec<String> {
    let line = line.replace("\\|", "\u{1}");
    let inner = line.trim().trim_start_matches('|');
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    inner
        .split('|')
        .map(|cell| cell.trim().replace('\u{1}', "|"))
        .collect()
}

fn inline(text: &str) -> String {
    let text = escape(&text.replace("&lt;", "<"));
    paired(&paired(&text, "**", "b"), "`", "code")
}

/// Every second `mark` ends what the one before it begins.
fn paired(text: &str, mark: &str, tag: &str) -> String {
    let mut parts = text.split(mark);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        let slash = if index % 2 == 0 { "" } else { "/" };
        let _ = write!(result, "<{slash}{tag}>{part}");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::result::tests::outcome;

    #[test]
    fn the_page_needs_nothing_else() {
        let page = render(&outcome());
        assert!(!page.contains("http") && !page.contains("<script") && !page.contains("<link"));
        assert_eq!(page.matches("<figure>").count(), 16);
        assert_eq!(page.matches("<table>").count(), 4);
        assert!(page.contains("a &lt;machine&gt;"));
    }

    #[test]
    fn markdown_becomes_html() {
        assert_eq!(
            html("## a **b** `c<`"),
            "<h2>a <b>b</b> <code>c&lt;</code></h2>\n"
        );
        let table = html("| a | b |\n|---|--:|\n| x \\| y | 1 |");
        assert!(
            table.contains("<td>x | y</td><td class=\"right\">1</td>"),
            "{table}"
        );
    }
}
