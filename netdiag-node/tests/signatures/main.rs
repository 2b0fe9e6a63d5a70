//! Every known way in which this kernel drops packets is injected (`table.txt`), and the agent names it: reason, function,
//! hook, and whose namespace it was.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod action;
mod attach;
mod frame;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod support;
mod table;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use netdiag_common::observation::Owner;
use netdiag_common::observation::kfree_skb::{DropGroup, Drops};
use netdiag_node::clock::now;
use netdiag_node::kernel::KernelDrops;

use action::Held;
use support::Namespace;
use table::{Entry, Signature, Step};

const TEST: &str = "every_way_to_drop_a_packet_is_named";

/// Entries at once: most of their time they wait.
const WORKERS: usize = 6;
/// Stacks are sampled, and other tests on this machine drop packets too: an entry that only lacks its hook has more tries.
const TRIES: usize = 3;

/// Three namespaces in a row.
struct World {
    namespaces: [(&'static str, Namespace); 3],
}

impl World {
    fn new() -> Self {
        let [c, r, s] = std::array::from_fn(|_| Namespace::new());
        for namespace in [&c, &r, &s] {
            // Before there are devices: nobody looks for neighbours or routers then.
            namespace.sh("for of in all default; do echo 1 >/proc/sys/net/ipv6/conf/$of/disable_ipv6; done
                 echo 0 >/proc/sys/net/ipv4/icmp_ratelimit");
        }
        c.connect("c0", &r, "r0");
        r.connect("r1", &s, "s0");
        // Neighbours are told, so that no packet waits for one.
        c.sh("ip link set c0 address 02:00:00:00:01:02; ip addr add 10.1.0.2/24 dev c0
             ip neigh add 10.1.0.1 lladdr 02:00:00:00:01:01 dev c0; ip route add default via 10.1.0.1");
        r.sh(
            "echo 1 >/proc/sys/net/ipv4/ip_forward
             ip link set r0 address 02:00:00:00:01:01; ip addr add 10.1.0.1/24 dev r0
             ip link set r1 address 02:00:00:00:02:01; ip addr add 10.2.0.1/24 dev r1
             ip neigh add 10.1.0.2 lladdr 02:00:00:00:01:02 dev r0; ip neigh add 10.2.0.2 lladdr 02:00:00:00:02:02 dev r1",
        );
        s.sh("ip link set s0 address 02:00:00:00:02:02; ip addr add 10.2.0.2/24 dev s0
             ip neigh add 10.2.0.1 lladdr 02:00:00:00:02:01 dev s0; ip route add default via 10.2.0.1");
        Self { namespaces: [("c", c), ("r", r), ("s", s)] }
    }

    fn namespace(&self, name: &str) -> &Namespace {
        &self.namespaces.iter().find(|(found, _)| *found == name).expect("c, r or s").1
    }
}

/// What an entry left behind: enough to find its drops.
struct Done {
    ids: [(&'static str, u64); 3],
    started: Timestamp,
    ended: Timestamp,
}

fn inject(entry: &Entry) -> Done {
    let started = now();
    let world = World::new();
    let mut held = Held::default();
    for step in &entry.steps {
        match step {
            Step::Shell { namespace, command } => {
                let group = held.group.as_ref().map_or(String::new(), |group| format!("GROUP={}; ", group.display()));
                world.namespace(namespace).sh(&format!("{group}{command}"));
            }
            Step::Act { namespace, words } => action::act(world.namespace(namespace), words, &mut held),
        }
    }
    thread::sleep(Duration::from_millis(100));
    let ended = now();
    Done { ids: world.namespaces.each_ref().map(|(name, namespace)| (*name, namespace.id)), started, ended }
}

/// The drops of one entry: what its namespaces dropped while it ran.
fn dropped(drops: &KernelDrops, done: &Done) -> Drops {
    let owner = |id| match done.ids.iter().find(|(_, found)| *found == id) {
        Some((name, _)) => Owner::Pod { uid: (*name).to_owned() },
        None => Owner::Unknown { id },
    };
    let mut seen = drops.observe(now(), netdiag_common::Window::FiveMinutes, &owner);
    // Devices that go away drop what is in them.
    seen.groups.retain(|group| group.first_at <= done.ended && matches!(group.netns, Owner::Pod { .. }));
    seen
}

/// What is wrong with what the agent saw; empty when it is exactly what the table says.
fn judge(entry: &Entry, common: &[Signature], seen: &Drops, done: &Done) -> Vec<String> {
    let mut wrong = Vec::new();
    let place = |group: &DropGroup| match &group.netns {
        Owner::Pod { uid } => uid.clone(),
        _ => String::new(),
    };
    let is_it = |group: &&DropGroup| entry.drop.covers(&place(group), &group.reason, &group.location);
    let expected: Vec<&DropGroup> = seen.groups.iter().filter(is_it).collect();
    if expected.is_empty() {
        wrong.push(format!("no {:?}", entry.drop));
    }
    for group in &expected {
        if group.since.is_none_or(|since| since < done.started - Duration::from_millis(20)) {
            wrong.push(format!("first seen at {:?}, started at {}", group.since, done.started));
        }
    }
    if let Some((hook, direction)) = &entry.hook {
        let word = |value: serde_json::Value| value.as_str().unwrap_or("none").to_owned();
        let found: BTreeSet<(String, String)> = expected
            .iter()
            .map(|group| (word(serde_json::json!(group.hook)), word(serde_json::json!(group.direction))))
            .collect();
        if !found.contains(&(hook.clone(), direction.clone())) {
            wrong.push(format!("hook and direction are {found:?}, not {hook} {direction}"));
        }
    }
    for group in &seen.groups {
        let allowed = [&entry.drop].into_iter().chain(&entry.also).chain(common);
        if !allowed.into_iter().any(|signature| signature.covers(&place(group), &group.reason, &group.location)) {
            let what = (&group.reason, &group.location, &group.tuple, group.ether_type);
            wrong.push(format!("{} packets in {} besides: {what:?}", group.packets, place(group)));
        }
    }
    wrong
}

#[test]
fn every_way_to_drop_a_packet_is_named() {
    let Some(drops) = support::load(TEST, None) else { return };
    if !drops.has_symbols() {
        return eprintln!("netdiag-skip: {TEST}: kernel addresses have no names");
    }
    let table = table::parse(include_str!("table.txt"));
    let only = std::env::var("NETDIAG_SIGNATURE").unwrap_or_default();
    let mut entries: Vec<&Entry> = table.entries.iter().filter(|entry| entry.name.contains(&only)).collect();
    entries.retain(|entry| {
        let lacks = entry.needs.iter().find(|path| !path.exists());
        if let Some(path) = lacks {
            eprintln!("netdiag-skip: {TEST}: {}: {} does not exist", entry.name, path.display());
        }
        lacks.is_none()
    });
    let drops = Mutex::new(drops);
    let mut failures: Vec<(&Entry, Vec<String>)> = Vec::new();
    for attempt in 1..=TRIES {
        failures.clear();
        for (entry, done) in inject_all(&entries, &drops) {
            let wrong = match done {
                Some(done) => {
                    let drops = drops.lock().unwrap();
                    judge(entry, &table.common, &dropped(&drops, &done), &done)
                }
                None => vec!["the injection failed".to_owned()],
            };
            if !wrong.is_empty() {
                failures.push((entry, wrong));
            }
        }
        entries = failures.iter().map(|(entry, _)| *entry).collect();
        if entries.is_empty() {
            break;
        }
        eprintln!("try {attempt}: {} entries are not as expected", entries.len());
    }
    let report: Vec<String> =
        failures.iter().map(|(entry, wrong)| format!("[{}]\n  {}", entry.name, wrong.join("\n  "))).collect();
    assert!(report.is_empty(), "{}", report.join("\n"));
}

/// Injects entries side by side; harvests while and after they run.
fn inject_all<'a>(entries: &[&'a Entry], drops: &Mutex<KernelDrops>) -> Vec<(&'a Entry, Option<Done>)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS.min(entries.len()) {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // On a thread of its own: a failed step ends this entry, not the test.
                    let done = thread::scope(|scope| scope.spawn(|| inject(entry)).join().ok());
                    drops.lock().unwrap().harvest(now());
                    results.lock().unwrap().push((*entry, done));
                }
            });
        }
    });
    drops.lock().unwrap().harvest(now());
    results.into_inner().unwrap()
}
