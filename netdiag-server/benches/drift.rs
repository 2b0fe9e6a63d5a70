//! What the server's part of a drift check of one node costs: parsing what the agent sent, and comparing it with the objects.
//! `cargo xtask bench programmed` makes both.
//!
//! Arguments: a file of objects, one as JSON on each line, the agent's answer, rounds. Prints one line for each value.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement that cannot be made fails")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading, Topic};
use netdiag_server::drift::{Drift, compare};
use netdiag_server::evidence::{Cluster, parse};

const NODE: &str = "n1";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [objects, answer, rounds] = words.as_slice() else {
        println!("usage: OBJECTS ANSWER ROUNDS");
        return;
    };
    let mut cluster = Cluster::default();
    for line in BufReader::new(std::fs::File::open(objects).unwrap()).lines() {
        parse::add(&mut cluster, serde_json::from_str(&line.unwrap()).unwrap()).unwrap();
    }
    let cluster = Arc::new(cluster);
    let before = forget_peak();
    let first = check(&cluster, answer);
    println!("memory_kib {}", memory_kib("VmHWM:").saturating_sub(before));
    let [node] = first.nodes.as_slice() else { panic!("one node") };
    println!("compared {} with differences {}", node.compared, node.differences.len());
    let mut times: Vec<f64> = (0..rounds.parse::<usize>().unwrap().max(1))
        .map(|_| {
            let started = Instant::now();
            std::hint::black_box(check(&cluster, answer));
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("compare_us {:.3}", times[times.len() / 2]);
}

fn check(cluster: &Arc<Cluster>, answer: &str) -> Drift {
    let value: Observation = serde_json::from_slice(&std::fs::read(answer).unwrap()).unwrap();
    let now = Timestamp::now();
    let reading = Reading::Seen { value, at: now };
    let readings = BTreeMap::from([(Need::host(NODE, Topic::ServiceRules), reading)]);
    compare(cluster.clone(), &[NODE.to_owned()], &readings, now)
}

/// Resident memory now, from which on the highest is kept (proc(5), `clear_refs`).
fn forget_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    memory_kib("VmRSS:")
}

fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
