//! A plot as SVG: lines over two axes, which take their bounds from the points. Pure, and the same each time.

use std::fmt::Write as _;

use serde::Serialize;

/// Size of the picture, in its own units; it is shown as wide as there is room. Not much wider than on a phone, so that labels can be read there.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 270.0;
/// Where the axes are.
const LEFT: f64 = 56.0;
const RIGHT: f64 = 430.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 216.0;
/// How it looks.
pub(crate) const STYLE: &str = "svg text,text{font:15px system-ui,sans-serif;fill:#56606d}\
    .grid{stroke:#e6eaef;fill:none}.line{fill:none;stroke-width:2.5;stroke-linejoin:round}";
/// Room above it for its title and its legend, where it stands alone.
const HEADER: f64 = 46.0;
/// Ticks of an axis, about.
const TICKS: f64 = 5.0;
/// And at most.
const MOST_TICKS: u32 = 10;
/// Colours of lines, told apart also by those who see few.
const COLOURS: [&str; 3] = ["#0b63b0", "#c2410c", "#2f7d4f"];
/// Points of a line that are drawn, at most.
const DRAWN: usize = 1_000;

/// How an axis counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    /// From 0.
    Linear,
    /// By powers of ten; for numbers above 0.
    Log,
    /// Shares from 0 to 1, by how many nines they have.
    Nines,
}

/// An axis: what it counts, or in what unit. Empty: the plot's title says it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Axis {
    pub(crate) title: &'static str,
    pub(crate) scale: Scale,
}

/// A line of a plot.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

impl Plot {
    pub(crate) fn new(
        title: &'static str,
        x: (&'static str, Scale),
        y: (&'static str, Scale),
        lines: Vec<Line>,
    ) -> Self {
        let axis = |(title, scale)| Axis { title, scale };
        Self { title, x: axis(x), y: axis(y), lines }
    }

    /// Its picture within a page that has [`STYLE`]; nothing if there is no point.
    pub(crate) fn svg(&self) -> Option<String> {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><title>{0}</title>\n",
            self.title
        );
        self.draw(&mut svg)?;
        Some(svg)
    }

    /// The same as a file of its own, with title and legend.
    pub(crate) fn picture(&self) -> Option<String> {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 {} {WIDTH} {}\" width=\"{}\" role=\"img\"><title>{title}</title>\n\
             <style>{STYLE}.title{{font-weight:600;fill:#1c2430}}</style>\n\
             <rect y=\"{0}\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text class=\"title\" x=\"8\" y=\"{}\">{title}</text>\n",
            -HEADER,
            HEIGHT + HEADER,
            WIDTH * 1.5,
            18.0 - HEADER,
            title = self.name_and_unit(),
        );
        if self.lines.len() > 1 {
            let entry = |(line, colour): (&Line, &&str)| {
                format!("<tspan style=\"fill:{colour}\">■ {}</tspan>", line.name)
            };
            let entries: Vec<_> = self.lines.iter().zip(COLOURS.iter().cycle()).map(entry).collect();
            svg.extend(["<text x=\"8\" y=\"-6\">", &entries.join("&#160; "), "</text>\n"]);
        }
        self.draw(&mut svg)?;
        svg.push('\n');
        Some(svg)
    }

    /// What it shows, and in what unit.
    pub(crate) fn name_and_unit(&self) -> String {
        let unit = if self.y.title.is_empty() { String::new() } else { format!(", {}", self.y.title) };
        format!("{}{unit}", self.title)
    }

    /// Axes and lines, and the picture's end.
    fn draw(&self, svg: &mut String) -> Option<()> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Range::of(self.x.scale, points().map(|p| p.0))?;
        let y = Range::of(self.y.scale, points().map(|p| p.1))?;
        // Writing to a string can't fail.
        self.draw_over(svg, &x, &y).ok();
        svg.push_str("</svg>");
        Some(())
    }

    fn draw_over(&self, svg: &mut String, x: &Range, y: &Range) -> std::fmt::Result {
        let across = |value: f64| LEFT + x.share(value) * (RIGHT - LEFT);
        let up = |value: f64| BOTTOM - y.share(value) * (BOTTOM - TOP);
        for (value, label) in y.ticks() {
            let at = up(value);
            writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>")?;
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                at + 4.0
            )?;
        }
        for (value, label) in x.ticks() {
            let at = across(value);
            writeln!(svg, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>")?;
            writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                BOTTOM + 18.0
            )?;
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        writeln!(
            svg,
            "<text class=\"axis\" x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            self.x.title
        )?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let drawn = thinned(&line.points);
            let path: Vec<_> =
                drawn.iter().map(|(a, b)| format!("{:.1} {:.1}", across(*a), up(*b))).collect();
            writeln!(svg, "<path class=\"line\" stroke=\"{colour}\" d=\"M{}\"/>", path.join("L"))?;
            if drawn.len() <= 12 {
                for (a, b) in &drawn {
                    writeln!(
                        svg,
                        "<circle fill=\"{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"/>",
                        across(*a),
                        up(*b)
                    )?;
                }
            }
        }
        Ok(())
    }

    /// What the lines are, if there are several.
    pub(crate) fn legend(&self) -> String {
        if self.lines.len() < 2 {
            return String::new();
        }
        let entry = |(line, colour): (&Line, &&str)| {
            format!("<span><i style=\"background:{colour}\"></i>{}</span>", line.name)
        };
        let entries: Vec<_> = self.lines.iter().zip(COLOURS.iter().cycle()).map(entry).collect();
        format!("<p class=\"legend\">{}</p>", entries.join(" "))
    }
}

/// Every so many points only, if there are more than can be seen; the last one always.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(DRAWN).max(1);
    let mut drawn: Vec<_> = points.iter().step_by(step).copied().collect();
    if !points.len().saturating_sub(1).is_multiple_of(step) {
        drawn.extend(points.last());
    }
    drawn
}

/// From where to where an axis goes, as its scale counts.
struct Range {
    scale: Scale,
    from: f64,
    to: f64,
}

impl Range {
    /// `None`: there is nothing to show.
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Option<Self> {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.map(|value| counted(scale, value)).filter(|value| value.is_finite()) {
            (from, to) = (from.min(value), to.max(value));
        }
        if from > to {
            return None;
        }
        let (from, to) = match scale {
            Scale::Linear if to > 0.0 => (from.min(0.0), to * 1.05),
            Scale::Linear => (from.min(0.0), 1.0),
            Scale::Log => (from.floor(), to.ceil().max(from.floor() + 1.0)),
            Scale::Nines => (0.0, to.max(1.0)),
        };
        Some(Self { scale, from, to })
    }

    /// Where a value is, 0 at the beginning and 1 at the end.
    fn share(&self, value: f64) -> f64 {
        ((counted(self.scale, value) - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Values with their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        let all: Vec<f64> = match self.scale {
            Scale::Linear => {
                let rough = (self.to - self.from) / TICKS;
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
                let step = step.unwrap_or(rough);
                (0..=MOST_TICKS).map(|n| f64::from(n) * step).collect()
            }
            Scale::Log => (self.from as i32..=self.to as i32).map(|power| 10f64.powi(power)).collect(),
            Scale::Nines => vec![0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999],
        };
        let inside = |value: &f64| (self.from..=self.to + 1e-9).contains(&counted(self.scale, *value));
        let label = |value: f64| match self.scale {
            Scale::Nines => format!("{} %", number(value * 100.0)),
            _ => number(value),
        };
        all.into_iter().filter(inside).map(|value| (value, label(value))).collect()
    }
}

/// A value as its scale counts; not finite: it has no place there.
fn counted(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log => value.log10(),
        Scale::Nines => -(1.0 - value).log10(),
    }
}

/// A number as short as it can be said.
pub(crate) fn number(value: f64) -> String {
    let short = |value: f64| {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        size if size >= 1e6 => format!("{} M", short(value / 1e6)),
        size if size >= 10_000.0 => format!("{} k", short(value / 1e3)),
        _ => short(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>, x: Scale, y: Scale) -> Plot {
        Plot::new("Memory", ("sessions", x), ("MiB", y), vec![Line { name: "RSS", points }])
    }

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let svg = plot(vec![(0.0, 0.0), (10.0, 100.0)], Scale::Linear, Scale::Linear).svg().expect("points");
        // 5 % of room at the end of each axis.
        assert!(svg.contains("d=\"M56.0 216.0L412.2 21.7\""), "{svg}");
        assert!(svg.contains(">100</text>") && svg.contains(">sessions</text>"), "{svg}");
    }

    #[test]
    fn nothing_and_odd_numbers_make_no_picture_and_no_panic() {
        assert!(plot(Vec::new(), Scale::Linear, Scale::Linear).svg().is_none());
        assert!(plot(vec![(0.0, 0.0)], Scale::Linear, Scale::Log).svg().is_none());
        assert!(plot(vec![(0.0, f64::NAN)], Scale::Linear, Scale::Linear).svg().is_none());
        let flat = plot(vec![(0.0, 0.0), (0.0, 0.0)], Scale::Linear, Scale::Linear).svg().expect("points");
        assert!(!flat.contains("NaN") && !flat.contains("inf"), "{flat}");
        let nines = plot(vec![(0.5, 0.2), (0.999, 3.0), (1.0, 9.0)], Scale::Nines, Scale::Log);
        let nines = nines.svg().expect("points");
        assert!(nines.contains(">99.9 %</text>") && nines.contains(">0.1</text>"), "{nines}");
    }

    #[test]
    fn a_picture_stands_alone() {
        let line = |name| Line { name, points: vec![(1.0, 2.0), (3.0, 4.0)] };
        let (x, y) = (("sessions", Scale::Linear), ("MiB", Scale::Linear));
        let picture = Plot::new("Memory", x, y, vec![line("RSS"), line("PSS")]).picture().expect("points");
        assert!(picture.starts_with("<svg xmlns=") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(picture.contains("Memory, MiB") && picture.contains("■ PSS"), "{picture}");
        assert!(Plot::new("Memory", x, y, Vec::new()).picture().is_none());
    }

    #[test]
    fn many_points_are_thinned_and_the_last_one_stays() {
        let points: Vec<_> = (0..2_500).map(|n| (f64::from(n), 1.0)).collect();
        let drawn = thinned(&points);
        assert!(drawn.len() <= DRAWN + 1 && drawn.last() == points.last());
        assert_eq!(thinned(&points[..7]), points[..7]);
        assert!(thinned(&[]).is_empty());
    }

    #[test]
    fn numbers_are_short() {
        let said = [0.0, 0.25, 1_234.0, 12_500.0, 3_000_000.0, 99.9].map(number);
        assert_eq!(said, ["0", "0.25", "1234", "12.5 k", "3 M", "99.9"]);
    }
}
