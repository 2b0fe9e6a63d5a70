//! Conditions keep their promises on paper: names agree, lists are complete, words follow the grammar, pages are current.

use std::collections::BTreeSet;
use std::path::PathBuf;

use netdiag_server::answer::explain;
use netdiag_server::condition::{self, Read};
use netdiag_server::evidence::KindName;

/// The fault ids that conditions may claim to cover: of the catalogue and of the laboratory's signatures, those that are judged
/// so far, and what the catalogue lacks: `svc-external-traffic-policy-local`, a sibling, `dns-kubelet-wrong-server`,
/// `dns-cluster-domain-mismatch`, and `cni-two-plugins`.
const FAULTS: &[&str] = &[
    "svc-selector-mismatch",
    "svc-pods-not-ready",
    "svc-client-uses-wrong-port",
    "svc-wrong-targetport",
    "app-not-running",
    "app-bind-localhost",
    "kp-missing-on-node",
    "kp-stale-rules",
    "np-default-deny-ingress",
    "np-and-or",
    "np-port-service-vs-pod",
    "np-deny-egress-dns",
    "dns-coredns-down",
    "svc-missing-or-wrong-namespace",
    "host-firewall-drop",
    "cni-podcidr-route-missing",
    "cni-blackhole-route",
    "np-global-deny",
    "ct-table-full",
    "neigh-failed-router-side",
    "host-neigh-overflow",
    "host-link-errors",
    "ct-udp-stale-endpoint",
    "host-listen-overflow",
    "host-cpu-throttling",
    "host-ip-forward-off",
    "rp-filter-strict",
    "cni-pod-no-default-route",
    "ct-notrack-vip",
    "kp-leftover-rules",
    "np-agent-lag",
    "kp-hairpin-bridge-off",
    "kp-bridge-nf-call-off",
    "svc-internal-traffic-policy-local",
    "svc-topology-hints-starvation",
    "svc-session-affinity-skew",
    "svc-lb-source-ranges",
    "svc-external-traffic-policy-local",
    "kp-restore-failure",
    "kp-legacy-nft-mix",
    "cni-duplicate-pod-ip",
    "svc-manual-endpoints-stale",
    "svc-cidr-overlap",
    "cni-two-plugins",
    "cni-vxlan-blocked",
    "cni-vxlan-param-mismatch",
    "cni-mtu-blackhole",
    "dns-wrong-dnspolicy",
    "dns-kubelet-wrong-server",
    "dns-cluster-domain-mismatch",
    "cni-missing-masquerade",
    "cni-agent-down",
    "cni-networkd-flush",
    "host-clock-skew",
    "cni-ebpf-map-full",
    "cni-vxlan-checksum-offload",
    "cni-ipip-blocked",
    "cni-src-dst-check",
    "svc-headless-port-translation",
    "svc-ipfamily-mismatch",
];

/// Files of `src/condition` that hold what conditions share instead of a condition: they name no code.
fn condition_files() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for entry in std::fs::read_dir(server("src/condition")).expect("src/condition is there") {
        let path = entry.expect("src/condition can be listed").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let is_condition = path.is_file() && read(&path).contains("pub const CONDITION: Condition");
        if is_condition || path.join("mod.rs").is_file() {
            codes.insert(stem);
        }
    }
    codes
}

fn server(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[expect(clippy::disallowed_methods, reason = "a test reads the files it is about")]
fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The text of one condition, in one file or in a folder of them.
fn source_of(code: &str) -> String {
    let mut text = read(&server(&format!("src/condition/{code}.rs")));
    for entry in std::fs::read_dir(server(&format!("src/condition/{code}"))).into_iter().flatten() {
        text.push_str(&read(&entry.expect("a condition's folder can be listed").path()));
    }
    text
}

fn codes() -> BTreeSet<String> {
    condition::ALL.iter().map(|condition| condition.code.to_owned()).collect()
}

#[test]
fn every_file_is_a_condition_of_the_list_and_has_its_fixture() {
    assert_eq!(condition_files(), codes(), "files of src/condition on the left, condition::ALL on the right");
    assert_eq!(codes().len(), condition::ALL.len(), "two conditions share a code");
    for code in codes() {
        let fixture = server(&format!("fixtures/{code}.md"));
        assert!(fixture.is_file(), "{} is missing", fixture.display());
    }
}

#[test]
fn fixtures_tell_when_a_condition_fires_is_silent_and_cannot_tell() {
    for code in codes() {
        let text = read(&server(&format!("fixtures/{code}.md"))).to_lowercase();
        // Some can always tell: what they judge by is there whenever there is a path at all.
        let may_be_unknown = source_of(&code).contains("Verdict::unknown");
        for (story, wanted) in [("fires when", true), ("stays silent when", true), ("cannot tell when", may_be_unknown)]
        {
            assert!(!wanted || text.contains(story), "fixtures/{code}.md tells no story that {story}");
        }
    }
}

#[test]
fn codes_that_conditions_name_exist() {
    let codes = codes();
    for condition in condition::ALL {
        let explained = condition.explains.iter().map(|explains| explains.code);
        for other in condition.lookalikes.iter().copied().chain(explained) {
            assert!(codes.contains(other), "{} names {other}, which is no condition", condition.code);
            assert_ne!(other, condition.code, "{other} names itself");
        }
        assert!(!condition.faults.is_empty(), "{} covers no fault", condition.code);
        for fault in condition.faults {
            assert!(FAULTS.contains(fault), "{} covers {fault}, which the catalogue does not have", condition.code);
        }
    }
}

#[test]
fn declared_reads_are_topics_and_kinds_without_repetition() {
    let topics = [
        "preflight",
        "pods",
        "network",
        "sysctls",
        "listeners",
        "conntrack",
        "flows",
        "find_flows",
        "resolver",
        "rules",
        "service_rules",
        "kube_proxy",
        "kubelet",
        "cni",
        "drops",
        "rejects",
        "tcp",
        "dns",
        "devices",
        "neighbours",
        "sockets",
        "counters",
        "probe",
        "series",
        "fate",
        "policy_map",
        "networkd",
    ];
    for condition in condition::ALL {
        let mut seen = BTreeSet::new();
        for read in condition.reads {
            let name = match read {
                Read::Kind(kind) => kind.name(),
                Read::Topic(topic) => {
                    assert!(topics.contains(topic), "{} reads {topic}, which is no topic", condition.code);
                    topic
                }
            };
            let kind = KindName::ALL.iter().any(|kind| kind.name() == name);
            assert!(seen.insert((kind, name, matches!(read, Read::Topic(_)))), "{} reads {name} twice", condition.code);
        }
    }
}

#[test]
fn words_are_clauses_that_fit_into_a_message() {
    for condition in condition::ALL {
        let words = &condition.words;
        for text in [words.means, words.how_we_know, words.silent_when, words.what_to_do] {
            assert!(!text.is_empty(), "{} lacks words", condition.code);
            assert!(!text.ends_with(['.', '!', ' ', '\n']), "{}: ends like a sentence: {text}", condition.code);
            assert!(!text.contains("  ") && !text.contains('\n'), "{}: broken spacing: {text}", condition.code);
            let first = text.split(' ').next().unwrap_or_default();
            assert!(starts_like_a_clause(first), "{}: starts with a capital: {text}", condition.code);
        }
        assert!(!words.sources.is_empty(), "{} names no source", condition.code);
    }
}

/// Lower case, unless the word is a name: `DNS`, `NetworkPolicy`, `CoreDNS`, `EndpointSlices`.
fn starts_like_a_clause(word: &str) -> bool {
    let capitals = word.chars().filter(|character| character.is_uppercase()).count();
    capitals == 0 || capitals > 1 || word.starts_with(|c: char| c.is_lowercase()) || is_kind(word)
}

fn is_kind(word: &str) -> bool {
    ["Service", "Services", "Pod", "Pods", "Node", "Kubernetes"].contains(&word.trim_end_matches("'s"))
}

#[test]
fn the_catalogue_page_is_current() {
    let path = server("docs/conditions.md");
    current(&path, &explain::catalogue());
}

#[test]
fn the_schemas_are_current() {
    for (name, schema) in netdiag_server::answer::schema::all() {
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
        current(&server(&format!("schema/{name}")), &format!("{text}\n"));
    }
}

/// Set `NETDIAG_BLESS=1` to write the page anew.
fn current(path: &std::path::Path, generated: &str) {
    if std::env::var_os("NETDIAG_BLESS").is_some() {
        std::fs::write(path, generated).expect("the page can be written");
    }
    let written = read(path);
    assert!(written == generated, "{} is not current: run NETDIAG_BLESS=1 cargo test --test words", path.display());
}

#[test]
fn a_code_that_does_not_exist_names_its_neighbours() {
    let error = explain::explain("service_selects_nopods").expect_err("it does not exist").to_string();
    assert!(error.contains("service_selects_no_pods"), "{error}");
}
