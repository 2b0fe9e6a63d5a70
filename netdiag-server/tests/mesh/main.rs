//! The mesh on paper: what a simulation of large clusters says about coverage, detection and cost, and the page that shows it.

mod simulation;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use netdiag_common::observation::mesh::{MAX_ATTEMPTS_PER_S, MAX_TARGETS};
use netdiag_server::mesh::assign::{FULL_MESH_NODES, NEIGHBOURS, ZONES};
use netdiag_server::mesh::metrics;
use netdiag_server::mesh::plan::DNS_REPLICAS;
use netdiag_server::mesh::rounds::ONE_SHOT_INTERVAL_MS;
use netdiag_server::mesh::{INTERVAL_MS, MAX_USER_TARGETS, ROUND_MS, TIMEOUT_MS, user_intervals_ms};
use simulation::Simulated;

/// Two losses of ten are more than chance for a target of one in a thousand: the second attempt after the first, and its time-out.
const ENOUGH_MS: u32 = INTERVAL_MS + TIMEOUT_MS;
/// Clusters that are simulated: nodes and zones.
const CLUSTERS: [(usize, usize); 8] = [(3, 1), (10, 3), (21, 3), (50, 3), (100, 3), (500, 3), (1_000, 3), (5_000, 5)];

static SIMULATED: LazyLock<Vec<Simulated>> =
    LazyLock::new(|| CLUSTERS.iter().map(|(nodes, zones)| Simulated::run(*nodes, *zones)).collect());

#[test]
fn every_target_of_a_round_fits_into_an_assignment() {
    // By TCP and ICMP, and by ICMP in the other address family.
    let most = 3 * (FULL_MESH_NODES - 1) + DNS_REPLICAS + 1 + MAX_USER_TARGETS;
    assert!(most <= MAX_TARGETS, "{most} targets");
    // As the page says.
    assert!(most * 1_000 / INTERVAL_MS as usize <= 50);
    // An agent makes all of a server's attempts, and besides all of somebody's who looks once.
    let per_second = |interval_ms: u32| MAX_TARGETS as u64 * 1_000 / u64::from(interval_ms);
    assert!(per_second(INTERVAL_MS) + per_second(ONE_SHOT_INTERVAL_MS) <= MAX_ATTEMPTS_PER_S);
}

#[test]
fn cost_is_bounded_and_everything_is_covered() {
    for simulated in SIMULATED.iter() {
        let Simulated { nodes, peers, probed, cycle, uncovered, zones_per_round, .. } = simulated;
        assert!(peers.1 < FULL_MESH_NODES && probed.1 < FULL_MESH_NODES, "{nodes} nodes: {peers:?}, {probed:?}");
        assert_eq!(*uncovered, 0, "{nodes} nodes: pairs are left out after {cycle} rounds");
        assert_eq!(*zones_per_round, 1, "{nodes} nodes: two zones do not probe each other in each round");
    }
}

#[test]
fn the_page_is_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/mesh.md");
    let generated = page();
    if std::env::var_os("NETDIAG_BLESS").is_some() {
        std::fs::write(&path, &generated).expect("the page can be written");
    }
    #[expect(clippy::disallowed_methods, reason = "a test reads the files it is about")]
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == generated, "{} is not current: run NETDIAG_BLESS=1 cargo test --test mesh", path.display());
}

fn page() -> String {
    include_str!("page.md")
        .replace("{simulation}\n", &simulation())
        .replace("{metrics}\n", &metrics_table())
        .replace("{neighbours}", &NEIGHBOURS.to_string())
        .replace("{zones}", &ZONES.to_string())
        .replace("{full}", &FULL_MESH_NODES.to_string())
        .replace("{intervals}", &intervals())
        .replace("{round_s}", &(ROUND_MS / 1_000).to_string())
        .replace("{interval_s}", &(INTERVAL_MS / 1_000).to_string())
        .replace("{timeout_s}", &(TIMEOUT_MS / 1_000).to_string())
        .replace("{dns}", &DNS_REPLICAS.to_string())
        .replace("{user}", &MAX_USER_TARGETS.to_string())
}

fn intervals() -> String {
    let all: Vec<String> = user_intervals_ms().map(|ms| format!("{}s", ms / 1_000)).collect();
    all.join(", ")
}

fn simulation() -> String {
    let mut table = "| nodes | zones | peers of a node | attempts/s of a node | probed by | every pair after | one broken link: mean | \
                     worst | two zones apart |\n|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (found, (nodes, zones)) in SIMULATED.iter().zip(CLUSTERS) {
        let (cycle, mean) = (found.cycle, found.mean_wait_rounds);
        let apart = if zones > 1 { seconds(f64::from(ENOUGH_MS) / 1e3) } else { "-".to_owned() };
        let rate = 2.0 * found.mean_peers * 1e3 / f64::from(INTERVAL_MS);
        let round_s = f64::from(ROUND_MS) / 1e3;
        let after = |rounds: f64| seconds(rounds * round_s + f64::from(ENOUGH_MS) / 1e3);
        let span = |(least, most): (usize, usize)| {
            if least == most { format!("{least}") } else { format!("{least} to {most}") }
        };
        #[expect(clippy::cast_precision_loss, reason = "some hundred rounds")]
        let worst = after(found.worst_wait_rounds as f64);
        let rounds = if cycle == 1 { "1 round".to_owned() } else { format!("{cycle} rounds") };
        writeln!(
            table,
            "| {nodes} | {zones} | {} | {rate:.1} | {} | {rounds} | {} | {worst} | {apart} |",
            span(found.peers),
            span(found.probed),
            after(mean)
        )
        .expect("a String takes everything");
    }
    table
}

/// `3 s`, `4 min`, `1.2 h`.
fn seconds(seconds: f64) -> String {
    match () {
        () if seconds < 90.0 => format!("{seconds:.0} s"),
        () if seconds < 5_400.0 => format!("{:.1} min", seconds / 60.0),
        () => format!("{:.1} h", seconds / 3_600.0),
    }
}

fn metrics_table() -> String {
    let mut table = "| metric | labels | meaning |\n|---|---|---|\n".to_owned();
    for metric in metrics::ALL {
        let labels: Vec<String> =
            metric.labels.split(' ').filter(|label| !label.is_empty()).map(|label| format!("`{label}`")).collect();
        writeln!(table, "| `{}` | {} | {} |", metric.name, labels.join(" "), metric.meaning)
            .expect("a String takes everything");
    }
    table
}
