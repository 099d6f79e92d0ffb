// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The few shapes that the plots need, as SVG that reads well on a light and on
//! a dark page.

use std::fmt::{Display, Write as _};

const STYLE: &str = "
text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 }
.head { font-weight: 600 }
.note { font-size: 12px; fill: #57606a }
.end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: #d0d7de } .goal { stroke: #bf3989; stroke-width: 2 }
.goal-text { font-size: 12px; fill: #bf3989 }
.ours { fill: #0969da } .other { fill: #afb8c1 }
.line-ours { stroke: #0969da; stroke-width: 2; fill: none }
.line-other { stroke: #953800; stroke-width: 2; fill: none; stroke-dasharray: 6 4 }
.dot-other { fill: #953800 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .note { fill: #9198a1 } .grid { stroke: #3d444d }
.goal { stroke: #f778ba } .goal-text { fill: #f778ba }
.ours { fill: #4493f8 } .other { fill: #656c76 }
.line-ours { stroke: #4493f8 } .line-other { stroke: #e0823d } .dot-other { fill: #e0823d }
}
";

pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub fn new(width: f64, height: f64) -> Svg {
        Svg {
            width,
            height,
            body: String::new(),
        }
    }

    pub fn text(&mut self, class: &str, x: f64, y: f64, text: impl Display) {
        let text = text.to_string().replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(
            "<text class='{class}' x='{x:.1}' y='{y:.1}'>{text}</text>"
        ));
    }

    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        self.add(format_args!(
            "<rect class='{class}' x='{x:.1}' y='{y:.1}' width='{width:.1}' height='{height:.1}' rx='2'/>"
        ));
    }

    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(format_args!(
            "<line class='{class}' x1='{x1:.1}' y1='{y1:.1}' x2='{x2:.1}' y2='{y2:.1}'/>"
        ));
    }

    pub fn dot(&mut self, class: &str, (x, y): (f64, f64)) {
        self.add(format_args!(
            "<circle class='{class}' cx='{x:.1}' cy='{y:.1}' r='4'/>"
        ));
    }

    pub fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        self.add(format_args!(
            "<polyline class='{class}' points='{}'/>",
            points.join(" ")
        ));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string never fails.
        let _ = writeln!(self.body, "{element}");
    }

    pub fn finish(self) -> String {
        let Svg {
            width,
            height,
            body,
        } = self;
        format!(
            "<!-- SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause -->\n\
             <svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' \
             width='{width}' height='{height}'>\n<style>{STYLE}</style>\n{body}</svg>\n"
        )
    }
}
