//! `--report DIR`: one page of HTML that needs nothing beside it, the same figures and points as JSON, and each plot as SVG. A later run of the same
//! scenario, target and transport takes their place.

mod plot;
mod recorder;

use std::path::Path;

pub(crate) use plot::{Line, Plot, Scale};
pub(crate) use recorder::Recorder;

use mooring::cli::output::{self, Failure, note};
use mooring::clock::Clock;
use serde_json::{Value, json};

use crate::figures::Figures;

const STYLE: &str = "\
:root{color-scheme:light}*{box-sizing:border-box}\
body{margin:0 auto;max-width:60rem;padding:1rem;background:#fff;color:#1c2430;font:16px/1.5 system-ui,sans-serif}\
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.1rem;margin:0 0 .5rem}\
.sub{color:#56606d;margin:0 0 1rem;overflow-wrap:anywhere}\
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.5rem;margin:1rem 0}\
.tile{border:1px solid #d9dee5;border-radius:.5rem;padding:.5rem .75rem}\
.tile b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}.tile span{color:#56606d;font-size:.85rem}\
.bad{border-color:#b3261e;background:#fdf1f0}.bad b{color:#b3261e}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}\
figure{margin:0;border:1px solid #d9dee5;border-radius:.5rem;padding:.75rem}\
svg{display:block;width:100%;height:auto}\
.legend{margin:0 0 .25rem;font-size:.9rem}.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin:0 .35rem 0 .5rem}\
details{margin-top:1rem}code,pre{font:13px/1.5 ui-monospace,monospace}pre{overflow-x:auto;background:#f5f7f9;border-radius:.5rem;padding:.75rem}";

/// Figures that are told by more than their name: what they are, and their unit.
const NAMES: [(&str, &str, &str); 33] = [
    ("lost", "messages lost", ""),
    ("rss_bytes_per_session", "resident memory a session", "B"),
    ("pss_bytes_per_session", "proportional memory a session", "B"),
    ("kernel_bytes_per_session", "kernel memory a session", "B"),
    ("connects_per_s", "connects a second", ""),
    ("cpu_us_per_connect", "server CPU a connect", "µs"),
    ("idle_cpu_us_per_session_s", "idle CPU a session and second", "µs"),
    ("deliveries", "messages delivered", ""),
    ("deliveries_per_s", "messages a second", ""),
    ("cpu_us_per_delivery", "server CPU a message", "µs"),
    ("floor_cpu_us_per_delivery", "floor: the same over bare sockets", "µs"),
    ("p50_ms", "latency, median", "ms"),
    ("p99_ms", "latency, 99 %", "ms"),
    ("p999_ms", "latency, 99.9 %", "ms"),
    ("max_ms", "latency, longest", "ms"),
    ("quiet_p50_ms", "before the broadcast, median", "ms"),
    ("quiet_p99_ms", "before the broadcast, 99 %", "ms"),
    ("quiet_p999_ms", "before the broadcast, 99.9 %", "ms"),
    ("quiet_max_ms", "before the broadcast, longest", "ms"),
    ("beside_targets_per_s", "accepted of the broadcast a second", ""),
    ("floor_sync_p50_ms", "floor: a sync of the disk, median", "ms"),
    ("floor_sync_p99_ms", "floor: a sync of the disk, 99 %", "ms"),
    ("floor_slow_percent", "floor: 5 ms in which a core does less than half", "%"),
    ("last_device_ms", "until the last device has it", "ms"),
    ("floor_last_device_ms", "floor: until the last one", "ms"),
    ("pointers", "messages accepted for later", ""),
    ("pointers_per_s", "accepted a second", ""),
    ("cpu_us_per_pointer", "server CPU each", "µs"),
    ("disk_bytes_per_pointer", "bytes of the journal each", "B"),
    ("ready_seconds", "from start to ready", "s"),
    ("back_cpu_s", "server CPU until all are back", "s"),
    ("load_cpu_s", "CPU of the load itself", "s"),
    ("seconds", "it took", "s"),
];

/// Writes all files into this directory, which is made if it isn't there.
pub(crate) fn write(dir: &Path, figures: &Figures, plots: &[Plot]) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error| Failure::failed(format!("--report: {path}: {error}"))
    };
    std::fs::create_dir_all(dir).map_err(failed(dir))?;
    let mut value = serde_json::to_value(figures).map_err(Failure::failed)?;
    let name = format!("{}-{}-{}", figures.scenario, figures.target, figures.transport);
    let (page, data) = (dir.join(format!("{name}.html")), dir.join(format!("{name}.json")));
    let command: Vec<_> = std::env::args().skip(1).collect();
    let command = format!("loadtest {}", command.join(" "));
    std::fs::write(&page, html(&value, plots, &command, &about())).map_err(failed(&page))?;
    value["plots"] = json!(plots);
    value["command"] = json!(command);
    std::fs::write(&data, format!("{value:#}\n")).map_err(failed(&data))?;
    for plot in plots {
        let Some(picture) = plot.picture() else { continue };
        let path = dir.join(format!("{name}-{}.svg", plot.title.to_lowercase().replace(' ', "-")));
        std::fs::write(&path, picture).map_err(failed(&path))?;
    }
    note(&format!("{}", page.display()));
    Ok(())
}

/// When and where.
fn about() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let build = if cfg!(debug_assertions) { ", unoptimised build" } else { "" };
    let (when, version) = (output::moment(Clock::new(0).now()), env!("CARGO_PKG_VERSION"));
    format!("{when} · {cores} cores · Linux {} · loadtest {version}{build}", kernel.trim())
}

fn html(figures: &Value, plots: &[Plot], command: &str, about: &str) -> String {
    let text = |name: &str| figures[name].as_str().unwrap_or_default().to_owned();
    let title = format!(
        "{}: {} devices of {} over {}",
        text("scenario"),
        figures["devices"],
        text("target"),
        text("transport")
    );
    let tiles: String = NAMES.iter().filter_map(|tile| self::tile(figures, tile)).collect();
    let plots: String = plots.iter().filter_map(figure).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title>\
         <style>{STYLE}{}</style></head>\n<body><h1>{title}</h1>\n<p class=\"sub\">{}<br><code>{}</code></p>\n\
         <div class=\"tiles\">{tiles}</div>\n<div class=\"plots\">{plots}</div>\n\
         <details><summary>All figures as JSON</summary><pre>{}</pre></details></body></html>\n",
        plot::STYLE,
        escaped(about),
        escaped(command),
        escaped(&format!("{figures:#}")),
        title = escaped(&title),
    )
}

fn tile(figures: &Value, (name, what, unit): &(&str, &str, &str)) -> Option<String> {
    let value = figures[name].as_f64()?;
    let class = if *name == "lost" && value > 0.0 { "tile bad" } else { "tile" };
    Some(format!("<div class=\"{class}\"><b>{} {unit}</b><span>{what}</span></div>\n", plot::number(value)))
}

fn figure(plot: &Plot) -> Option<String> {
    let svg = plot.svg()?;
    Some(format!("<figure><h2>{}</h2>{}{svg}</figure>\n", plot.name_and_unit(), plot.legend()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_all_it_needs_and_says_what_is_lost() {
        let figures = Figures {
            scenario: "unicast",
            target: "mooring",
            transport: "tcp",
            lost: 3,
            ..Figures::default()
        };
        let line = Line { name: "latency", points: vec![(0.5, 1.0), (0.99, 4.0)] };
        let plot = Plot::new("Latency", ("share", Scale::Nines), ("ms", Scale::Log), vec![line]);
        let value = serde_json::to_value(&figures).expect("JSON");
        let page = html(&value, &[plot], "loadtest unicast --start '<b>&'", "today");
        assert!(page.contains("class=\"tile bad\"><b>3 </b><span>messages lost"), "{page}");
        assert!(page.contains("<svg") && page.contains("&lt;b&gt;&amp;") && !page.contains("<b>&"), "{page}");
        // Nothing is fetched.
        assert!(!page.contains("http") && !page.contains("src="), "{page}");
        assert!(!page.contains("latency, median"), "what wasn't measured has no tile: {page}");
    }

    #[test]
    fn every_name_is_a_figure() {
        let figures = serde_json::to_value(Figures::default()).expect("JSON");
        for (name, ..) in NAMES {
            assert!(figures.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn both_files_are_written() {
        let scratch = mooring::client::local::Scratch::new(None).expect("a directory");
        let dir = scratch.dir().join("new");
        let figures = Figures { scenario: "storm", target: "mqtt", transport: "tls", ..Figures::default() };
        write(&dir, &figures, &[]).expect("written");
        let data = std::fs::read_to_string(dir.join("storm-mqtt-tls.json")).expect("read");
        let data: Value = serde_json::from_str(&data).expect("JSON");
        assert_eq!((&data["scenario"], &data["p50_ms"]), (&json!("storm"), &Value::Null));
        assert!(dir.join("storm-mqtt-tls.html").is_file());
    }
}
