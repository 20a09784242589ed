//! Draws curves as SVG. It measures nothing.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color as _, IntoDrawingArea as _, IntoLogRange as _, LineSeries,
    Palette as _, Palette99, PathElement, SVGBackend, SeriesLabelPosition, WHITE,
};
use serde_json::{Value, json};

const SIZE: (u32, u32) = (860, 480);
const FONT: &str = "sans-serif";

/// One picture.
#[derive(Debug)]
pub(crate) struct Chart {
    /// Its name, without `.svg`.
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) series: Vec<Series>,
}

/// One curve.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    pub(crate) fn new(side: &str, figure: &str) -> Self {
        Self { name: format!("{side}, {figure}"), points: Vec::new() }
    }

    pub(crate) fn push(&mut self, x: f64, y: f64) {
        self.points.push((x, y));
    }
}

impl Chart {
    /// Draws with both axes logarithmic, so that a ratio is a distance.
    pub(crate) fn draw(&self, directory: &Path) -> anyhow::Result<()> {
        let file = directory.join(format!("{}.svg", self.file));
        self.draw_to(&file).map_err(|error| anyhow!("{error}"))
    }

    fn draw_to(&self, file: &Path) -> Result<(), Box<dyn std::error::Error + '_>> {
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let points = || self.series.iter().flat_map(|series| &series.points);
        let span = |of: fn(&(f64, f64)) -> f64| {
            let least = points().map(of).fold(f64::MAX, f64::min);
            let most = points().map(of).fold(f64::MIN_POSITIVE, f64::max);
            (least / 1.5)..(most * 1.5)
        };
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, (FONT, 22))
            .margin(12)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(span(|p| p.0).log_scale(), span(|p| p.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .label_style((FONT, 16))
            .axis_desc_style((FONT, 17))
            .draw()?;
        for (at, series) in self.series.iter().enumerate() {
            let color = Palette99::pick(at).to_rgba();
            chart
                .draw_series(LineSeries::new(series.points.iter().copied(), color.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3))
                });
            let dots = series.points.iter().map(|point| Circle::new(*point, 3, color.filled()));
            chart.draw_series(dots)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 16))
            .draw()?;
        area.present()?;
        Ok(())
    }

    pub(crate) fn to_json(&self) -> Value {
        let curves: Vec<_> =
            self.series.iter().map(|s| json!({ "name": s.name, "points": s.points })).collect();
        json!({ "title": self.title, "x": self.x, "y": self.y, "curves": curves })
    }
}

/// A number as an axis has it.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}
