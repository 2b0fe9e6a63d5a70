//! What the engine adds to a round trip: the same probe by the engine and by the tool that people use, in the same namespace.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Lab, NODE_ADDRESS, request, tcp};
use crate::bench::table::{Row, Target};
use crate::command;

pub(super) const INTERVAL: Duration = Duration::from_millis(5);
const P50_US: f64 = 20.0;
const P99_US: f64 = 100.0;

/// The middle and the slow end of round trips, microseconds.
#[derive(Clone, Copy)]
struct Times {
    p50: f64,
    p99: f64,
}

/// A kind of probe, the phase of it that is compared, and the tool beside it.
struct Pair {
    what: &'static str,
    tool: &'static str,
    phase: &'static str,
    probe: Value,
    times: fn(&Lab<'_>, u32) -> Result<Vec<f64>>,
}

pub(super) fn measure(lab: &Lab<'_>, probes: u32, missing: &mut Vec<String>) -> Result<Vec<Row>> {
    let url = format!("http://{NODE_ADDRESS}:{}/", lab.servers.http);
    let http =
        json!({ "kind": "http", "url": url, "version": "any", "method": "GET", "redirects": 0, "body_bytes": 1024 });
    let pairs = [
        Pair {
            what: "ICMP echo",
            tool: "ping",
            phase: "rtt",
            probe: json!({ "kind": "icmp", "to": NODE_ADDRESS, "bytes": 56 }),
            times: ping,
        },
        Pair {
            what: "TCP connect",
            tool: "hping3",
            phase: "connect",
            probe: tcp(lab.servers.tcp[0], "reset"),
            times: hping3,
        },
        Pair { what: "HTTP, to the first byte", tool: "curl", phase: "total", probe: http, times: curl },
    ];
    let mut rows = Vec::new();
    for pair in pairs {
        let result = lab.one(request(&pair.probe, probes, INTERVAL, 1))?;
        let engine = of_phase(&result, pair.phase)?;
        if command::find(pair.tool).is_none() {
            missing.push(format!("{} beside {}: {0} is not installed", pair.tool, pair.what));
            rows.push(Row::beside(format!("{}: p50, µs", pair.what), engine.p50));
            rows.push(Row::beside(format!("{}: p99, µs", pair.what), engine.p99));
            continue;
        }
        let tool = quantiles((pair.times)(lab, probes)?).with_context(|| format!("{} printed no times", pair.tool))?;
        for (name, engine, tool, target) in
            [("p50", engine.p50, tool.p50, P50_US), ("p99", engine.p99, tool.p99, P99_US)]
        {
            let what = format!("{}: {name} above that of {}, µs", pair.what, pair.tool);
            rows.push(Row::new(what, engine - tool, Target::AtMost(target)));
            rows.push(Row::beside(format!("    engine {engine:.0}, {} {tool:.0}: ratio", pair.tool), engine / tool));
        }
    }
    Ok(rows)
}

fn of_phase(result: &Value, phase: &str) -> Result<Times> {
    let times = result["times"].as_array().context("a result has no times")?;
    let found = times.iter().find(|times| times["phase"] == phase);
    let found = found.with_context(|| format!("there is no phase {phase} in {result}"))?;
    let at = |name: &str| found[name].as_f64().with_context(|| format!("{phase} has no {name}"));
    Ok(Times { p50: at("p50_us")?, p99: at("p99_us")? })
}

/// None of nothing.
fn quantiles(mut times: Vec<f64>) -> Option<Times> {
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied();
    Some(Times { p50: at(50)?, p99: at(99)? })
}

/// `time=0.034 ms` in each line, and the same in hping3's `rtt=0.3 ms`.
fn milliseconds(text: &str, name: &str) -> Vec<f64> {
    let times = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(name)?;
        rest.split(' ').next()?.parse::<f64>().ok()
    });
    times.map(|ms| ms * 1_000.0).collect()
}

fn ping(lab: &Lab<'_>, probes: u32) -> Result<Vec<f64>> {
    let interval = INTERVAL.as_secs_f64();
    let text = lab.pod.space.sh(&format!("ping -n -c {probes} -i {interval} {NODE_ADDRESS}"))?;
    Ok(milliseconds(&text, "time="))
}

/// It prints tenths of a millisecond.
fn hping3(lab: &Lab<'_>, probes: u32) -> Result<Vec<f64>> {
    let (port, interval) = (lab.servers.tcp[0], INTERVAL.as_micros());
    let text =
        lab.pod.space.sh(&format!("hping3 -n -S -p {port} -c {probes} -i u{interval} {NODE_ADDRESS} 2>/dev/null"))?;
    Ok(milliseconds(&text, "rtt="))
}

/// One process, a connection for each request.
fn curl(lab: &Lab<'_>, probes: u32) -> Result<Vec<f64>> {
    let url = format!("http://{NODE_ADDRESS}:{}/?[1-{probes}]", lab.servers.http);
    let text = lab.pod.space.sh(&format!(
        "curl --silent --no-keepalive --header 'Connection: close' --output /dev/null --write-out '%{{time_total}}\\n' '{url}'"
    ))?;
    Ok(text.lines().filter_map(|line| line.trim().parse::<f64>().ok()).map(|seconds| seconds * 1e6).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_in_what_tools_print() {
        let ping = "64 bytes from 10.76.255.1: icmp_seq=1 ttl=64 time=0.034 ms\nrtt min/avg/max/mdev = 0.0/0/0/0 ms\n";
        assert_eq!(milliseconds(ping, "time="), [34.0]);
        let hping3 = "len=44 ip=10.76.255.1 ttl=64 DF id=0 sport=80 flags=SA seq=0 win=64240 rtt=0.3 ms\n";
        assert_eq!(milliseconds(hping3, "rtt="), [300.0]);
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert!(quantiles(Vec::new()).is_none());
        let times = quantiles((0..100).map(f64::from).collect()).unwrap();
        assert_eq!((times.p50, times.p99), (50.0, 99.0));
    }
}
