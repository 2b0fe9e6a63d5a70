//! `GET /probe`, as a Prometheus that was configured for blackbox_exporter asks for it, on the server's own loopback.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::observed::Space;
use super::super::world::CLIENT;
use crate::cluster::Cluster;

/// Where `netdiag serve` listens unless it is told otherwise.
const PORT: u16 = 8080;
/// Far above the scrape's own timeout.
const WITHIN: Duration = Duration::from_secs(30);

/// What is asked for, and lines of the answer.
const ASKED: [(&str, &[&str]); 4] = [
    (
        "module=http_2xx&target=http%3A%2F%2Fweb.shop.svc.cluster.local%2Fhostname",
        &["probe_success 1", "probe_http_status_code 200"],
    ),
    ("module=tcp_connect&target=10.96.0.80:80", &["probe_success 1", "probe_ip_protocol 4"]),
    ("module=tcp_connect&target=10.96.0.80:81", &["probe_success 0"]),
    ("module=dns&target=10.96.0.10", &["probe_success 1", "probe_dns_query_succeeded 1", "probe_dns_answer_rrs 1"]),
];

pub(super) fn scraped(cluster: &Cluster) -> Result<Vec<String>> {
    let words = ["-n", "netdiag-system", "get", "pods", "--selector", "app.kubernetes.io/name=netdiag"];
    let running = ["--field-selector", "status.phase=Running", "--output", "jsonpath={.items[0].metadata.name}"];
    let pod = cluster.kubectl(&[&words[..], &running[..]].concat())?;
    let space = Space::of_pod(cluster, "netdiag-system", pod.trim())?;
    let mut wrong = Vec::new();
    for (query, lines) in ASKED {
        let page = space.run(|| page(query)).with_context(|| format!("asking for {query}"))?;
        if !lines.iter().all(|wanted| page.lines().any(|line| line == *wanted)) {
            wrong.push(format!("/probe?{query} has not all of {lines:?}: {page}"));
        }
    }
    Ok(wrong)
}

fn page(query: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("cannot connect to the server")?;
    stream.set_read_timeout(Some(WITHIN))?;
    write!(
        stream,
        "GET /probe?{query}&from={CLIENT} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
