//! What the server's part of a drift check of one node costs: parsing what the agent sent, and comparing it with the objects.
//! `cargo xtask bench programmed` makes both.
//!
//! Arguments: a file of objects, one as JSON on each line, the agent's answer, samples. The time is criterion's, in the folder
//! `CRITERION_HOME`; the rest is printed, a line for each value.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement that cannot be made fails")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode};
use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading, Topic};
use netdiag_server::drift::{Drift, compare};
use netdiag_server::evidence::{Cluster, parse};

const NODE: &str = "n1";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [objects, answer, samples] = words.as_slice() else {
        println!("usage: OBJECTS ANSWER SAMPLES");
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
    let mut criterion = Criterion::default().without_plots().warm_up_time(Duration::from_millis(500));
    let mut group = criterion.benchmark_group("drift");
    group.sample_size(samples.parse().unwrap()).sampling_mode(SamplingMode::Flat);
    group.bench_function("compare", |bench| bench.iter(|| check(&cluster, answer)));
    group.finish();
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
