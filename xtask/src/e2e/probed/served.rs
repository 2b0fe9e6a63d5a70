//! Servers of the test's own in a pod's namespace, in both families: one takes all bytes, one breaks off in the middle of its
//! answer. And a network that loses a known share.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use super::super::case::{Script, Step};
use super::super::fault::Fault;
use super::super::observed::Space;
use super::super::world::CLIENT;
use super::probe;
use crate::cluster::Cluster;
use crate::install::Installed;

const PORT: u16 = 9_999;
const TO: &str = "pod/shop/web-2:9999";
const POLL: Duration = Duration::from_millis(10);
/// What is written has arrived when the reset comes.
const BEFORE_RESET: Duration = Duration::from_millis(200);

/// What one transfer sends.
const BYTES: u64 = 1_000_000;

const DATAGRAMS: u64 = 300;
/// 30 of 100 are dropped: 90 of 300, with a deviation of 7.9. Five deviations are left once in a million times.
const LOST: std::ops::RangeInclusive<u64> = 50..=130;
const LOSES: &str = "
nft add table inet site
nft add chain inet site fw '{ type filter hook forward priority 10; policy accept; }'
nft add rule inet site fw udp dport 8081 numgen random mod 100 '<' 30 counter drop
";

pub(super) fn looked_at(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let found = [throughput(cluster, installed)?, reset(cluster, installed)?, loss(cluster, installed)?];
    Ok(found.into_iter().flatten().collect())
}

/// A transfer that succeeds: all bytes are acknowledged.
fn throughput(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let words = ["throughput", "--duration-ms", "3000", "--max-bytes", "1000000"];
    let takes = |mut stream: TcpStream| io::copy(&mut stream, &mut io::sink()).map(drop);
    let answer = served(cluster, takes, || probe(cluster, installed, &words, CLIENT, TO))?;
    let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
    let is_whole = |series: &Value| reported(series, "bytes") >= BYTES;
    let is_right = answer["status"] == "well"
        && answer["not_seen"] == Value::Array(Vec::new())
        && series.len() == 2
        && series.iter().all(is_whole);
    Ok((!is_right).then(|| format!("a transfer to a server that takes all: {answer}")))
}

/// The client symptom of a stream that is reset, behind its first bytes.
fn reset(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let answer = served(cluster, breaks_off, || probe(cluster, installed, &["http", "-c", "1"], CLIENT, TO))?;
    let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
    let is_reset = |series: &Value| {
        let failure = &series["tally"]["failures"][0];
        failure["class"] == "reset" && failure["errno"] == "ECONNRESET" && failure["stage"] == "body"
    };
    let is_right = series.len() == 2 && series.iter().all(is_reset);
    Ok((!is_right).then(|| format!("a server that resets in the middle of its answer: {answer}")))
}

/// A share of datagrams is lost: as many as chance allows, and no more.
fn loss(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let on_n1 = |script: &str| [Step::Node { node: "n1".to_owned(), run: Script::Same(script.to_owned()) }];
    let (inject, restore) = (on_n1(LOSES), on_n1("nft delete table inet site"));
    Fault { name: "30 of 100 datagrams are dropped", inject: &inject, restore: &restore }.under(cluster, || {
        let datagrams = DATAGRAMS.to_string();
        let usual = ["udp", "-c", "1", "--payload", "hostname", "--gap-us", "2000", "--timeout", "3s"];
        let words = [&usual[..], &["--datagrams", datagrams.as_str()]].concat();
        let answer = probe(cluster, installed, &words, CLIENT, "pod/shop/web-2:8081")?;
        let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
        let is_lossy = |series: &Value| {
            let failure = &series["tally"]["failures"][0];
            failure["class"] == "silence"
                && failure["stage"] == "answer"
                && reported(series, "sent") == DATAGRAMS
                && LOST.contains(&reported(series, "lost"))
        };
        let is_right = series.len() == 2 && series.iter().all(is_lossy);
        Ok((!is_right).then(|| answer.to_string()))
    })
}

/// A number of the report of a series' only attempt.
fn reported(series: &Value, key: &str) -> u64 {
    series["tally"]["attempts"][0]["report"][key].as_u64().unwrap_or_default()
}

fn breaks_off(mut stream: TcpStream) -> io::Result<()> {
    let asked = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).count();
    if asked == 0 {
        return Ok(());
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nso far")?;
    thread::sleep(BEFORE_RESET);
    // With this, closing sends a reset.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

/// Serves connections one after the other while `work` is under way.
fn served<T>(
    cluster: &Cluster,
    serve: impl Fn(TcpStream) -> io::Result<()> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let listener = Space::of_pod(cluster, "shop", "web-2")?.run(|| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("cannot listen in pod shop/web-2")?;
        listener.set_nonblocking(true).context("cannot make a listener non-blocking")?;
        Ok(listener)
    })?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        // What the client makes of it is looked at, not what the server does.
                        let _ = serve(stream);
                    }
                    Err(_) => thread::sleep(POLL),
                }
            }
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        done
    })
}
