//! All metrics of the agent: what they are called, what they count, and the page that lists them.

use std::fmt::Write as _;

use super::{Kind, MAX_SERIES, METRICS_PORT, Metric, Unit};

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal, $unit:ident, $labels:expr, $help:literal;)+) => {
        $(pub(crate) static $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, unit: Unit::$unit, labels: &$labels, help: $help };)+
        /// Every metric, as the page lists them.
        pub static ALL: &[&Metric] = &[$(&$constant),+];
    };
}

metrics! {
    DROPS: Counter "netdiag_drops_total", One, ["reason"],
        "Packets dropped by the kernel, by its reason. Of the whole kernel, also where several nodes share it";
    DROPS_ACCOUNTED: Counter "netdiag_drops_accounted_total", One, ["level"],
        "The same packets by how exactly they were counted; the sum over all levels is the sum over all reasons";
    LOST_EVENTS: Counter "netdiag_lost_events_total", One, ["source", "cause"],
        "Events that were not seen, or seen without their details";
    DNS_QUERIES: Counter "netdiag_dns_queries_total", One, ["end"],
        "DNS queries that sockets sent, by how they ended. Of the whole kernel, also where several nodes share it";
    DNS_ANSWERS: Counter "netdiag_dns_answers_total", One, ["rcode"],
        "Answers to these queries by their code";
    DNS_OPEN: Gauge "netdiag_dns_queries_open", One, [],
        "Queries that wait for their answer";
    DNS_RETRIES: Counter "netdiag_dns_retries_total", One, [],
        "Queries sent again while they waited";
    DNS_SERVED: Counter "netdiag_dns_served_total", One, ["message"],
        "Messages of DNS servers on this kernel: queries that they received, answers that they sent";
    TCP_CONNECTS: Counter "netdiag_tcp_connects_total", One, [],
        "Attempts to connect that sockets began. With those unmatched, the sum over all results and those open. Of the whole \
         kernel, also where several nodes share it, as everything about TCP here";
    TCP_CONNECT_RESULTS: Counter "netdiag_tcp_connect_results_total", One, ["result"],
        "The same attempts by how they ended; untracked and lost ones ended unseen";
    TCP_CONNECTS_UNMATCHED: Counter "netdiag_tcp_connects_unmatched_total", One, [],
        "Results of attempts that were not seen to begin";
    TCP_CONNECTS_OPEN: Gauge "netdiag_tcp_connects_open", One, [],
        "Attempts that wait for their result";
    TCP_HANDSHAKE: Histogram "netdiag_tcp_handshake_seconds", Seconds, [],
        "From the first SYN to the established connection, at its client. Fewer than established results by those whose time \
         found no room in the kernel's tables";
    TCP_ACCEPTED: Counter "netdiag_tcp_accepted_total", One, [],
        "Connections that listeners completed";
    TCP_BROKEN: Counter "netdiag_tcp_broken_total", One, [],
        "Established connections that ended with an error";
    TCP_RETRANSMITS: Counter "netdiag_tcp_retransmits_total", One, ["segment"],
        "Segments sent again: syn, syn_ack, or of an established connection";
    REJECTS: Counter "netdiag_rejects_total", One, ["kind"],
        "ICMP errors and TCP resets, sent and received, and errors that sockets other than TCP's were told. Of the whole kernel, \
         also where several nodes share it";
    REJECTS_ACCOUNTED: Counter "netdiag_rejects_accounted_total", One, ["level"],
        "The same by how exactly they were counted; the sum over all levels is the sum over all kinds";
    UDP_FULL: Counter "netdiag_udp_full_total", One, [],
        "Datagrams that found the receive buffer of their socket full. Of the whole kernel, also where several nodes share it";
    UDP_FULL_ACCOUNTED: Counter "netdiag_udp_full_accounted_total", One, ["level"],
        "The same by how exactly they were counted; the sum over all levels is their number";
    CONNTRACK_ENTRIES: Gauge "netdiag_conntrack_entries", One, [],
        "Tracked connections in the node's network namespace";
    CONNTRACK_LIMIT: Gauge "netdiag_conntrack_entries_limit", One, [],
        "How many there may be in each namespace (nf_conntrack_max)";
    CONNTRACK_FAILURES: Counter "netdiag_conntrack_failures_total", One, ["cause"],
        "What connection tracking of the node's network namespace could not do, as the kernel names it";
    PODS: Gauge "netdiag_pods", One, [],
        "Pods found on the node";
    REQUESTS_SHED: Counter "netdiag_requests_shed_total", One, [],
        "Requests of the server refused because the agent was at its limit";
    SHED_STEP: Gauge "netdiag_shed_step", One, [],
        "How far the agent has reduced its work to stay in its budget; 0 is not at all";
    SHED_STEPS: Counter "netdiag_shed_steps_total", One, ["step"],
        "How often each reduction was taken";
    CPU_LIMIT: Gauge "netdiag_cpu_limit_ratio", One, [],
        "Budget of the agent's own CPU use, in CPUs";
    MEMORY_LIMIT: Gauge "netdiag_memory_limit_bytes", Bytes, [],
        "Budget of the agent's memory, with the tables of its kernel programs";
    PROGRAM_RUNS: Counter "netdiag_ebpf_runs_total", One, ["program"],
        "Runs of a kernel program, while the sysctl kernel.bpf_stats_enabled is 1";
    PROGRAM_SECONDS: Counter "netdiag_ebpf_run_seconds_total", Seconds, ["program"],
        "CPU time of a kernel program, while the sysctl kernel.bpf_stats_enabled is 1";
    PROGRAM_MEMORY: Gauge "netdiag_ebpf_memory_bytes", Bytes, ["kind"],
        "Kernel memory of the agent's programs and tables";
    AGENT: Gauge "netdiag_agent_info", One, ["version", "instance"],
        "Always 1. The instance is another one after each start: counters then begin at 0";
    PROCESS_CPU: Counter "process_cpu_seconds_total", Seconds, [],
        "CPU time of the agent's process, without its kernel programs";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes", Bytes, [],
        "Memory of the agent's process";
    PROCESS_DESCRIPTORS: Gauge "process_open_fds", One, [],
        "File descriptors of the agent's process";
    PROCESS_THREADS: Gauge "process_threads", One, [],
        "Threads of the agent's process";
    PROCESS_START: Gauge "process_start_time_seconds", Seconds, [],
        "When the agent started, in Unix time";
    OTLP_EXPORTS: Counter "netdiag_otlp_exports_total", One, ["result"],
        "Exports by OTLP, when they are configured";
    SERIES_LIMIT: Gauge "netdiag_metric_series_limit", One, [],
        "Time series that one metric may have";
    SERIES_OMITTED: Gauge "netdiag_metric_series_omitted", One, ["metric"],
        "Time series that a metric would have beyond the limit";
}

/// The page that documents them, in Markdown.
pub fn page() -> String {
    let mut page = format!(
        "# Metrics of the agent\n\n\
         Generated from `netdiag-node/src/metrics/catalogue.rs`; a test keeps it current.\n\n\
         Off by default. `--metrics-listen 127.0.0.1` (or `NETDIAG_METRICS_LISTEN`) serves `GET /metrics` as OpenMetrics text, on\n\
         port {METRICS_PORT} when none is given. There is no authentication: keep it on loopback behind a proxy that has one, or let\n\
         a packet filter admit only Prometheus. Nothing in it names a pod, an address or a name that was looked up.\n\n\
         `--otlp-endpoint http://collector:4318` (or `OTEL_EXPORTER_OTLP_ENDPOINT`) sends the same numbers by OTLP over HTTP with\n\
         protobuf, every `OTEL_METRIC_EXPORT_INTERVAL` milliseconds (60 000 by default), with the headers of\n\
         `OTEL_EXPORTER_OTLP_HEADERS`. For `https://` name the authority's certificate in `OTEL_EXPORTER_OTLP_CERTIFICATE`.\n\n\
         The node knows pods by UID only, so no metric has a label for a namespace or a pod; ask netdiag's server for those. A metric\n\
         has at most {MAX_SERIES} time series. Metrics whose source this kernel lacks are left out.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n"
    );
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(" "), metric.help)
            .expect("a String takes everything");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for metric in ALL {
            let name = metric.name;
            assert!(name.starts_with("netdiag_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            let base = name.trim_end_matches("_total");
            assert_eq!(base.ends_with("_seconds"), metric.unit == Unit::Seconds, "{name}");
            assert_eq!(base.ends_with("_bytes"), metric.unit == Unit::Bytes, "{name}");
            assert!(!metric.help.ends_with('.') && !metric.help.contains('\n'), "{name}");
        }
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len(), "a name is used twice");
    }

    /// `NETDIAG_WRITE_DOCS=1 cargo test -p netdiag-node the_page_is_current` writes it.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "reads and writes the documentation, not the node")]
    fn the_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("NETDIAG_WRITE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page(), "write it with NETDIAG_WRITE_DOCS=1");
    }
}
