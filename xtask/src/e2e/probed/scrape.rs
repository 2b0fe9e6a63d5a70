//! `GET /probe`, as a Prometheus that was configured for blackbox_exporter asks for it, with the token of an account that may probe.

use anyhow::Result;

use super::super::world::CLIENT;
use super::rights::{self, Loopback};
use crate::cluster::Cluster;

const TIMEOUT: &str = "X-Prometheus-Scrape-Timeout-Seconds: 10\r\n";

/// What is asked for, and lines of the answer.
const ASKED: [(&str, &[&str]); 4] = [
    (
        "module=http_2xx&target=http%3A%2F%2Fweb.shop.svc.cluster.local%2Fhostname",
        &["probe_success 1", "probe_http_status_code 200", "probe_failed_due_to_regex 0"],
    ),
    ("module=tcp_connect&target=10.96.0.80:80", &["probe_success 1", "probe_ip_protocol 4"]),
    ("module=tcp_connect&target=10.96.0.80:81", &["probe_success 0"]),
    ("module=dns&target=10.96.0.10", &["probe_success 1", "probe_dns_query_succeeded 1", "probe_dns_answer_rrs 1"]),
];

pub(super) fn scraped(cluster: &Cluster) -> Result<Vec<String>> {
    let server = Loopback::open(cluster)?;
    let token = rights::token(cluster, "prober")?;
    let mut wrong = Vec::new();
    for (query, lines) in ASKED {
        let page = server.exchange(&format!("GET /probe?{query}&from={CLIENT}"), TIMEOUT, Some(&token), "")?;
        if !lines.iter().all(|wanted| page.lines().any(|line| line == *wanted)) {
            wrong.push(format!("/probe?{query} has not all of {lines:?}: {page}"));
        }
    }
    Ok(wrong)
}
