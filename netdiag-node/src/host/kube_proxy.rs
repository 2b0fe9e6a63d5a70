//! kube-proxy's own view of itself: its process, `/healthz` on port 10256, `/proxyMode`, `/metrics` and `/configz` on port 10249.
//!
//! Asked with plain HTTP/1.0, which needs no more than a socket: kube-proxy offers no TLS here.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netdiag_common::observation::kube_proxy::{KubeProxy, KubeProxySettings};
use serde_json::Value;

use super::{ReadError, listener, process};

const HEALTHZ_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;
/// One request, from connecting to its last byte. It never leaves the node.
const REQUEST_WITHIN: Duration = Duration::from_millis(300);
/// A large cluster's metrics are some hundred KiB.
const MAX_ANSWER_BYTES: u64 = 4 * 1024 * 1024;

/// Under which `/configz` has its configuration (`pkg/proxy/apis/config/register.go`).
const GROUP: &str = "kubeproxy.config.k8s.io";

const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
const LAST_QUEUED: &str = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
const FAILURES: [&str; 3] = [
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
];

/// Runs inside the node's namespace, whose inode is `netns`. None when neither a process nor a socket of kube-proxy is there.
pub(crate) fn read(proc: &Path, netns: u64) -> Result<Option<KubeProxy>, ReadError> {
    let found = has_process(proc, netns);
    let listening = listener::tcp_addresses()?;
    let healthz_at = address_for(&listening, HEALTHZ_PORT);
    let metrics_at = address_for(&listening, METRICS_PORT);
    let has_process = match found {
        // Without the right to look at other processes, an answer on the ports still tells; their silence would not.
        Err(error) if healthz_at.is_none() && metrics_at.is_none() => return Err(error),
        found => found.unwrap_or(false),
    };
    if !has_process && healthz_at.is_none() && metrics_at.is_none() {
        return Ok(None);
    }
    let ask = |at: Option<SocketAddr>, path: &str| get(at?, path).ok();
    let mode = ask(metrics_at, "/proxyMode").filter(|answer| answer.status == 200);
    let metrics = ask(metrics_at, "/metrics").filter(|answer| answer.status == 200);
    let metrics = metrics.map(|answer| parse_metrics(&answer.body)).unwrap_or_default();
    let settings = ask(metrics_at, "/configz").filter(|answer| answer.status == 200);
    Ok(Some(KubeProxy {
        // k3s and others run it as a part of a larger process: then it answers, but has no name of its own.
        running: has_process || mode.is_some(),
        healthz_status: ask(healthz_at, "/healthz").map(|answer| answer.status),
        mode: mode.map(|answer| answer.body.trim().to_owned()),
        last_sync: metrics.last_sync,
        last_queued: metrics.last_queued,
        sync_failures: metrics.failures,
        settings: settings.and_then(|answer| parse_settings(&answer.body)),
    }))
}

/// A process of that name in this namespace. An error when there is one whose namespace may not be looked at.
fn has_process(proc: &Path, netns: u64) -> Result<bool, ReadError> {
    let mut denied = None;
    for pid in process::pids(proc)? {
        if process::name(proc, pid).as_deref() != Some("kube-proxy") {
            continue;
        }
        match process::is_in_netns(proc, pid, netns) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => denied = Some(error),
        }
    }
    denied.map_or(Ok(false), Err)
}

/// Where to reach a port of this namespace that something listens on.
fn address_for(listening: &[SocketAddr], port: u16) -> Option<SocketAddr> {
    let found = listening.iter().find(|address| address.port() == port)?;
    let ip = match found.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Some(SocketAddr::new(ip, port))
}

struct Answer {
    status: u16,
    body: String,
}

fn get(at: SocketAddr, path: &str) -> io::Result<Answer> {
    let deadline = Instant::now() + REQUEST_WITHIN;
    let mut stream = TcpStream::connect_timeout(&at, REQUEST_WITHIN)?;
    stream.set_write_timeout(Some(REQUEST_WITHIN))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {at}\r\nUser-Agent: netdiag-node\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() as u64 > MAX_ANSWER_BYTES {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the answer did not end in time"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => break,
            length => bytes.extend(&chunk[..length]),
        }
    }
    parse_answer(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

fn parse_answer(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

/// Answers of `/configz` (k8s.io/component-base/configz): kube-proxy 1.36 tells its configuration as it is written in a file, older ones
/// as they keep it, with other capitals and `MasqueradeAll` and the networks elsewhere.
fn parse_settings(text: &str) -> Option<KubeProxySettings> {
    let all: Value = serde_json::from_str(text).ok()?;
    let own = named(&all, GROUP)?;
    let below = |section: &str, key: &str| named(own, section).and_then(|section| named(section, key));
    let is_on = |section: &str, key: &str| below(section, key).and_then(Value::as_bool) == Some(true);
    let texts = |list: Option<&Value>| -> Vec<String> {
        let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let cluster_cidrs = match named(own, "clusterCIDR").and_then(Value::as_str) {
        Some(listed) => listed.split(',').map(|net| net.trim().to_owned()).filter(|net| !net.is_empty()).collect(),
        None => texts(below("detectLocal", "clusterCIDRs")),
    };
    let text = |key: &str| named(own, key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(KubeProxySettings {
        node_port_addresses: texts(named(own, "nodePortAddresses")),
        bind_address: text("bindAddress"),
        detect_local_mode: text("detectLocalMode"),
        cluster_cidrs,
        masquerade_all: ["iptables", "nftables", "linux"].iter().any(|section| is_on(section, "masqueradeAll")),
        strict_arp: is_on("ipvs", "strictARP"),
    })
}

/// A member by its name, whatever its capitals.
fn named<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[derive(Debug, Default, PartialEq)]
struct Metrics {
    last_sync: Option<Timestamp>,
    last_queued: Option<Timestamp>,
    failures: Option<u64>,
}

/// Prometheus text. With two address families the pair of the family that is further behind is told: a family without
/// changes has an old sync and nothing queued after it.
fn parse_metrics(text: &str) -> Metrics {
    // Labels → (last sync, last queued), seconds.
    let mut families: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    let mut failures = None;
    for line in text.lines().filter(|line| line.starts_with("kubeproxy_sync_proxy_rules_")) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        match name {
            LAST_SYNC => families.entry(labels).or_default().0 = value,
            LAST_QUEUED => families.entry(labels).or_default().1 = value,
            name if FAILURES.contains(&name) => {
                failures = Some(failures.unwrap_or(0_u64).saturating_add(count(value)));
            }
            _ => {}
        }
    }
    let behind = |(sync, queued): &(f64, f64)| queued - sync;
    // A family that is not used stays at zero.
    let used = families.into_values().filter(|(sync, queued)| *sync > 0.0 || *queued > 0.0);
    let slowest = used.max_by(|a, b| behind(a).total_cmp(&behind(b)));
    Metrics {
        last_sync: slowest.and_then(|(sync, _)| timestamp(sync)),
        last_queued: slowest.and_then(|(_, queued)| timestamp(queued)),
        failures,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are small and never negative")]
fn count(value: f64) -> u64 {
    value as u64
}

/// Zero means never.
fn timestamp(seconds: f64) -> Option<Timestamp> {
    if seconds.is_nan() || seconds <= 0.0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a cast from float saturates, and Timestamp checks the range")]
    Timestamp::from_millisecond((seconds * 1000.0) as i64).ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds The last time\n\
        # TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge\n\
        kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.7e+09\n\
        kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 1.6e+09\n\
        kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1.70000005e+09\n\
        kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 1.6e+09\n\
        kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 3\n\
        kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 1\n";

    #[test]
    fn family_that_is_behind_is_told() {
        let found = parse_metrics(TEXT);
        assert_eq!(found.last_sync.unwrap().as_second(), 1_700_000_000);
        assert_eq!(found.last_queued.unwrap().as_second(), 1_700_000_050);
        assert_eq!(found.failures, Some(4));
    }

    #[test]
    fn never_synced_is_not_the_year_1970() {
        let found = parse_metrics("kubeproxy_sync_proxy_rules_last_timestamp_seconds 0\n");
        assert_eq!(found, Metrics::default());
    }

    #[test]
    fn settings_are_read_as_every_version_tells_them() {
        let expected = KubeProxySettings {
            node_port_addresses: vec!["10.0.0.0/8".into()],
            bind_address: "0.0.0.0".into(),
            detect_local_mode: "ClusterCIDR".into(),
            cluster_cidrs: vec!["10.244.0.0/16".into(), "fd00:244::/56".into()],
            masquerade_all: true,
            strict_arp: true,
        };
        let written = r#"{"kubeproxy.config.k8s.io": {"kind": "KubeProxyConfiguration", "nodePortAddresses": ["10.0.0.0/8"],
            "bindAddress": "0.0.0.0", "clusterCIDR": "10.244.0.0/16,fd00:244::/56", "detectLocalMode": "ClusterCIDR",
            "iptables": {"masqueradeAll": false}, "nftables": {"masqueradeAll": true}, "ipvs": {"strictARP": true}}}"#;
        let kept = r#"{"kubeproxy.config.k8s.io": {"NodePortAddresses": ["10.0.0.0/8"], "BindAddress": "0.0.0.0",
            "DetectLocalMode": "ClusterCIDR", "DetectLocal": {"ClusterCIDRs": ["10.244.0.0/16", "fd00:244::/56"]},
            "Linux": {"MasqueradeAll": true}, "IPVS": {"StrictARP": true}}}"#;
        for text in [written, kept] {
            assert_eq!(parse_settings(text), Some(expected.clone()), "{text}");
        }
        let without = r#"{"kubeproxy.config.k8s.io": {"nodePortAddresses": null, "clusterCIDR": ""}}"#;
        assert_eq!(parse_settings(without), Some(KubeProxySettings::default()));
        for text in ["", "[]", "{}", r#"{"kubelet.config.k8s.io": {}}"#] {
            assert_eq!(parse_settings(text), None, "{text}");
        }
    }

    #[test]
    fn unspecified_address_is_reached_on_loopback() {
        let listening = ["0.0.0.0:10256".parse().unwrap(), "172.30.0.11:10249".parse().unwrap()];
        assert_eq!(address_for(&listening, HEALTHZ_PORT), Some("127.0.0.1:10256".parse().unwrap()));
        assert_eq!(address_for(&listening, METRICS_PORT), Some("172.30.0.11:10249".parse().unwrap()));
        assert_eq!(address_for(&listening, 80), None);
    }

    #[test]
    fn answer_with_status_and_body() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nlate").unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let answer = get(at, "/healthz").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "late"));
        assert!(thread.join().unwrap().starts_with("GET /healthz HTTP/1.0\r\n"));
    }

    #[test]
    fn silent_server_ends_in_time() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = Instant::now();
        assert!(get(server.local_addr().unwrap(), "/metrics").is_err());
        assert!(before.elapsed() < REQUEST_WITHIN * 3);
    }

    fn key() -> impl Strategy<Value = String> {
        let keys = "nodePortAddresses BindAddress detectLocalMode clusterCIDR clusterCIDRs iptables IPVS";
        prop::sample::select(keys.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    /// Right and wrong values for any setting.
    fn any_value() -> impl Strategy<Value = Value> {
        let values = serde_json::json!([null, true, 7, "10.0.0.0/8, ,fd00::/56", ["10.0.0.0/8", 7, null, []]]);
        prop::sample::select(values.as_array().unwrap().clone())
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "(?s).{0,200}") {
            let _ = (parse_answer(&text), parse_settings(&text));
            let _ = (parse_answer(&format!("HTTP/1.{text}\r\n\r\n")), parse_metrics(&format!("{LAST_SYNC}{text}")));
        }

        #[test]
        fn any_settings_stay_small(values in prop::collection::vec((key(), any_value()), 0..8)) {
            let of_section: serde_json::Map<String, Value> = values.into_iter().collect();
            let mut own = of_section.clone();
            own.insert("detectLocal".to_owned(), Value::Object(of_section));
            let text = format!("{{\"{GROUP}\": {}}}", Value::Object(own));
            let found = parse_settings(&text).unwrap();
            let lists = found.node_port_addresses.iter().chain(&found.cluster_cidrs).map(String::len);
            assert!(lists.sum::<usize>() + found.bind_address.len() <= text.len(), "{found:?}");
            assert!(found.cluster_cidrs.iter().all(|net| !net.is_empty()), "{found:?}");
        }

        #[test]
        fn any_metrics_end_and_lose_no_failure(
            times in prop::collection::vec(
                (prop::sample::select(vec![LAST_SYNC, LAST_QUEUED]), 0..3, proptest::num::f64::ANY),
                0..8,
            ),
            failures in prop::collection::vec((prop::sample::select(FAILURES.to_vec()), proptest::num::f64::ANY), 0..8),
        ) {
            let mut text = String::new();
            for (name, family, seconds) in times {
                text.push_str(&format!("{name}{{ip_family=\"{family}\"}} {seconds}\n"));
            }
            for (name, count) in &failures {
                text.push_str(&format!("{name} {count}\n"));
            }
            let found = parse_metrics(&text).failures;
            prop_assert_eq!(found.is_some(), !failures.is_empty());
            prop_assert!(failures.iter().all(|(_, one)| found >= Some(count(*one))), "{:?}", found);
        }
    }
}
