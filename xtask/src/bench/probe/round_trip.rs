//! What the engine adds to a round trip: the same probe by the engine and by the tool that people use, in the same namespace.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
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

/// A kind of probe and the tool beside it.
struct Pair {
    tool: &'static str,
    probe: Value,
    /// What is compared: in words, and where the engine tells it of an attempt.
    phases: &'static [(&'static str, &'static str)],
    /// The tool's times of each phase, microseconds.
    times: fn(&Lab<'_>, u32) -> Result<Vec<Vec<f64>>>,
}

pub(super) fn measure(lab: &Lab<'_>, probes: u32, missing: &mut Vec<String>) -> Result<Vec<Row>> {
    let url = format!("http://{NODE_ADDRESS}:{}/", lab.servers.http);
    let http =
        json!({ "kind": "http", "url": url, "version": "any", "method": "GET", "redirects": 0, "body_bytes": 1024 });
    let pairs = [
        Pair {
            tool: "ping",
            probe: json!({ "kind": "icmp", "to": NODE_ADDRESS, "bytes": 56 }),
            phases: &[("ICMP echo", "/report/rtt_us")],
            times: ping,
        },
        Pair {
            tool: "hping3",
            probe: tcp(lab.servers.tcp[0], "reset"),
            phases: &[("TCP connect", "/report/handshake_us")],
            times: hping3,
        },
        Pair {
            tool: "curl",
            probe: http,
            phases: &[
                ("HTTP: connect", "/report/exchanges/0/phases/connect_us"),
                ("HTTP: request sent to first byte", "/report/exchanges/0/phases/first_byte_us"),
                ("HTTP: everything", "/report/exchanges/0/phases/total_us"),
            ],
            times: curl,
        },
    ];
    let mut rows = Vec::new();
    for Pair { tool, probe, phases, times } in pairs {
        let result = lab.one(request(&probe, probes, INTERVAL, 1))?;
        let theirs = match command::find(tool) {
            Some(_) => Some(times(lab, probes)?),
            None => {
                missing.push(format!("{tool}: not installed"));
                None
            }
        };
        for (place, (what, pointer)) in phases.iter().enumerate() {
            let engine = quantiles(of_attempts(&result, pointer)?).with_context(|| format!("no times of {what}"))?;
            let Some(theirs) = &theirs else {
                rows.push(Row::beside(format!("{what}: p50, µs"), engine.p50));
                rows.push(Row::beside(format!("{what}: p99, µs"), engine.p99));
                continue;
            };
            let theirs = theirs.get(place).cloned().and_then(quantiles);
            let theirs = theirs.with_context(|| format!("{tool} printed no times"))?;
            for (name, engine, theirs, target) in
                [("p50", engine.p50, theirs.p50, P50_US), ("p99", engine.p99, theirs.p99, P99_US)]
            {
                let above = format!("{what}: {name} above that of {tool}, µs");
                rows.push(Row::new(above, engine - theirs, Target::AtMost(target)));
                rows.push(Row::beside(format!("    engine {engine:.0}, {tool} {theirs:.0}: ratio"), engine / theirs));
            }
        }
    }
    Ok(rows)
}

/// A time of each attempt. All must have succeeded: the times of what failed are others.
fn of_attempts(result: &Value, pointer: &str) -> Result<Vec<f64>> {
    ensure!(result["failed"] == 0 && result["untried"] == 0, "not all probes succeeded: {result}");
    let attempts = result["attempts"].as_array().context("a result has no attempts")?;
    let times = attempts.iter().map(|attempt| {
        attempt.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("there is no {pointer} in {attempt}"))
    });
    times.collect()
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

fn ping(lab: &Lab<'_>, probes: u32) -> Result<Vec<Vec<f64>>> {
    let interval = INTERVAL.as_secs_f64();
    let text = lab.pod.space.sh(&format!("ping -n -c {probes} -i {interval} {NODE_ADDRESS}"))?;
    Ok(vec![milliseconds(&text, "time=")])
}

/// It prints tenths of a millisecond.
fn hping3(lab: &Lab<'_>, probes: u32) -> Result<Vec<Vec<f64>>> {
    let (port, interval) = (lab.servers.tcp[0], INTERVAL.as_micros());
    let text =
        lab.pod.space.sh(&format!("hping3 -n -S -p {port} -c {probes} -i u{interval} {NODE_ADDRESS} 2>/dev/null"))?;
    Ok(vec![milliseconds(&text, "rtt=")])
}

/// One process, a connection for each request, from one start to the next the engine's own interval (`--rate`, curl 7.84):
/// without it caches and clock rates are warm for curl alone.
fn curl(lab: &Lab<'_>, probes: u32) -> Result<Vec<Vec<f64>>> {
    let url = format!("http://{NODE_ADDRESS}:{}/?[1-{probes}]", lab.servers.http);
    let rate = Duration::from_secs(1).as_micros() / INTERVAL.as_micros();
    let text = lab.pod.space.sh(&format!(
        "curl --silent --rate {rate}/s --no-keepalive --header 'Connection: close' --output /dev/null --write-out '{CURL_TIMES}' '{url}'"
    ))?;
    Ok(curl_phases(&text))
}

/// Each from the beginning of the request, seconds (curl(1), `--write-out`). Whatever its name says, `time_pretransfer` is taken when the
/// request was sent (`before_perform`, lib/multi.c, comes behind the state that sends); `time_total` ends before the connection is
/// closed.
const CURL_TIMES: &str =
    "%{time_namelookup} %{time_connect} %{time_pretransfer} %{time_starttransfer} %{time_total}\\n";

/// Connect, request to first byte, and everything.
fn curl_phases(text: &str) -> Vec<Vec<f64>> {
    let mut phases = vec![Vec::new(); 3];
    for line in text.lines() {
        let seconds: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if let [lookup, connect, pretransfer, first_byte, total] = seconds[..] {
            for (phase, seconds) in phases.iter_mut().zip([connect - lookup, first_byte - pretransfer, total]) {
                phase.push(seconds * 1e6);
            }
        }
    }
    phases
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
    fn phases_of_curl_are_told_apart() {
        let phases = curl_phases("0.000015 0.000115 0.000130 0.000330 0.000350\nnot a time\n");
        let whole: Vec<Vec<f64>> = phases.iter().map(|phase| phase.iter().map(|one| one.round()).collect()).collect();
        assert_eq!(whole, [[100.0], [200.0], [350.0]]);
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert!(quantiles(Vec::new()).is_none());
        let times = quantiles((0..100).map(f64::from).collect()).unwrap();
        assert_eq!((times.p50, times.p99), (50.0, 99.0));
    }
}
