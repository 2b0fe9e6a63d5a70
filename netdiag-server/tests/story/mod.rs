//! Reads the stories of `fixtures/*.md` and answers needs out of them.
//!
//! A fixture is Markdown. Each `## ` heading is one story; its fenced blocks say what differs from `world.yaml`:
//! `yaml ask` (from, to, protocol, no_probe, scan), `yaml objects`, `yaml without` (list of `Kind namespace/name`),
//! `yaml readings`, `yaml links` (list of {node, name}: one more link in that node's reading), `yaml probes`, `yaml fates`,
//! `yaml forbidden` (list of API kinds), `yaml expect`.

mod fate;
mod probe;
mod series;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Gap, Need, Netns, Reading, Tier, Topic, Window};
use netdiag_server::ask;
use netdiag_server::correlate::{Correlated, correlate};
use netdiag_server::evidence::{Cluster, Evidence, parse};
use netdiag_server::question::{Origin, Purpose, Question};
use serde::Deserialize;
use serde_json::Value;

use self::fate::ToldFate;
use self::probe::ToldProbe;

/// The moment every story is told at.
const NOW: &str = "2026-01-01T12:00:00Z";

pub struct Story {
    pub fixture: String,
    pub title: String,
    ask: Ask,
    blocks: Vec<(String, String)>,
    pub expect: Expect,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    #[serde(default)]
    from: Option<String>,
    to: String,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    no_probe: bool,
    #[serde(default)]
    scan: bool,
}

/// What every condition together must find: exactly these causes and consequences, nothing else.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    pub status: String,
    #[serde(default)]
    pub causes: Vec<Expected>,
    #[serde(default)]
    pub consequences: Vec<Expected>,
    /// Codes that must be unable to tell.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// Codes that the answer must not call excluded.
    #[serde(default)]
    pub not_excluded: Vec<String>,
    /// Of the whole answer.
    #[serde(default)]
    pub confidence_at_most: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub code: String,
    /// `Kind namespace/name`, all of them, in order.
    pub subjects: Vec<String>,
    /// Words that the claim must hold.
    #[serde(default)]
    pub says: Vec<String>,
    /// Words that some proof must hold, each of them.
    #[serde(default)]
    pub proves: Vec<String>,
    #[serde(default)]
    pub confidence_at_least: Option<f64>,
    #[serde(default)]
    pub confidence_at_most: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    node: String,
    netns: Netns,
    /// A name, or a map of one name and what is asked.
    topic: Value,
    #[serde(default)]
    seen: Option<Value>,
    #[serde(default)]
    absent: bool,
    #[serde(default)]
    unavailable: Option<Gap>,
    /// By the node's clock; untold: the story's moment.
    #[serde(default)]
    at: Option<Timestamp>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoreLink {
    node: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct World {
    objects: Vec<Value>,
    readings: Vec<Told>,
    probes: Vec<ToldProbe>,
}

/// What a story's end is compared with.
pub struct Ending {
    pub correlated: Correlated,
    pub unknown: Vec<&'static str>,
    pub evidence: Evidence,
    pub question: Question,
}

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// All stories of all fixtures, in the files' order.
pub fn stories() -> Vec<Story> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixtures())
        .expect("fixtures/ is there")
        .map(|entry| entry.expect("fixtures/ can be listed").path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    files.sort();
    files.iter().flat_map(|path| parse_fixture(path)).collect()
}

fn parse_fixture(path: &std::path::Path) -> Vec<Story> {
    let fixture = path.file_stem().expect("a file").to_string_lossy().into_owned();
    #[expect(clippy::disallowed_methods, reason = "a test reads its fixtures")]
    let text = std::fs::read_to_string(path).expect("a fixture can be read");
    let mut stories: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match &mut open {
            Some(_) if line.trim_end() == "```" => {
                let block = open.take().expect("a block is open");
                stories.last_mut().unwrap_or_else(|| panic!("{fixture}: a block before the first story")).1.push(block);
            }
            Some((_, content)) => {
                content.push_str(line);
                content.push('\n');
            }
            None => {
                if let Some(title) = line.strip_prefix("## ") {
                    stories.push((title.trim().to_owned(), Vec::new()));
                } else if let Some(kind) = line.strip_prefix("```yaml ") {
                    open = Some((kind.trim().to_owned(), String::new()));
                }
            }
        }
    }
    assert!(open.is_none(), "{fixture}: the last block is not closed");
    let story = |(title, blocks): (String, Vec<(String, String)>)| {
        let block = |kind: &str| {
            let found = blocks.iter().find(|(k, _)| k == kind).map(|(_, content)| content.as_str());
            found.unwrap_or_else(|| panic!("{fixture} / {title}: no block `yaml {kind}`"))
        };
        let place = format!("{fixture} / {title}");
        let (ask, expect) = (yaml(block("ask"), &place), yaml(block("expect"), &place));
        Story { fixture: fixture.clone(), title, ask, expect, blocks }
    };
    stories.into_iter().map(story).collect()
}

fn yaml<T: serde::de::DeserializeOwned>(text: &str, place: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{place}: {error}"))
}

impl Story {
    /// Asks the story's question and follows the needs to their end.
    pub fn run(&self) -> Ending {
        let place = format!("{} / {}", self.fixture, self.title);
        #[expect(clippy::disallowed_methods, reason = "a test reads its fixtures")]
        let world: World =
            yaml(&std::fs::read_to_string(fixtures().join("world.yaml")).expect("world.yaml"), "world.yaml");
        let question = self.question();
        let cluster = self.cluster(&world, &place);
        let (readings, probes) = self.told(&world, &place);
        let now: Timestamp = NOW.parse().expect("a time");
        let mut evidence = Evidence::new(now, Arc::new(cluster));
        let told: Vec<ToldFate> = self.blocks("fates").flat_map(|block| yaml::<Vec<ToldFate>>(block, &place)).collect();
        for _ in 0..32 {
            let (judged, needs) = ask::judge(&question, &evidence).unwrap_or_else(|error| panic!("{place}: {error}"));
            let needs: Vec<Need> =
                needs.into_iter().filter(|n| n.tier() <= question.tier && evidence.reading(n).is_none()).collect();
            if needs.is_empty() {
                let unknown =
                    judged.verdicts.iter().filter(|(_, v)| matches!(v, netdiag_server::condition::Verdict::Unknown(_)));
                let unknown = unknown.map(|(c, _)| c.code).collect();
                return Ending { correlated: correlate(&judged), unknown, evidence, question };
            }
            let answers: Vec<_> =
                needs.into_iter().map(|need| answer(need, &evidence.cluster, &readings, &probes, &told, now)).collect();
            evidence = evidence.with(now, answers);
        }
        panic!("{place}: the needs never end")
    }

    fn question(&self) -> Question {
        let from = self.ask.from.as_deref().map_or(Origin::EveryNode, |text| text.parse().expect("a source"));
        Question {
            from,
            to: self.ask.to.parse().expect("a target"),
            protocol: match self.ask.protocol.as_deref() {
                Some("udp") => netdiag_common::observation::Protocol::Udp,
                _ => netdiag_common::observation::Protocol::Tcp,
            },
            purpose: if self.ask.scan { Purpose::Scan } else { Purpose::Diagnose },
            tier: if self.ask.no_probe { Tier::Passive } else { Tier::Probe },
            budget: netdiag_server::question::DEFAULT_BUDGET,
        }
    }

    fn blocks<'s>(&'s self, kind: &'s str) -> impl Iterator<Item = &'s str> {
        self.blocks.iter().filter(move |(k, _)| k == kind).map(|(_, content)| content.as_str())
    }

    fn cluster(&self, world: &World, place: &str) -> Cluster {
        let mut objects: BTreeMap<String, Value> =
            world.objects.iter().map(|object| (object_key(object), object.clone())).collect();
        for block in self.blocks("objects") {
            for document in serde_saphyr::from_multiple::<Value>(block).unwrap_or_else(|e| panic!("{place}: {e}")) {
                objects.insert(object_key(&document), document);
            }
        }
        for key in self.blocks("without").flat_map(|block| yaml::<Vec<String>>(block, place)) {
            assert!(objects.remove(&key).is_some(), "{place}: there is no {key} to leave out");
        }
        let mut cluster = Cluster { name: "story".to_owned(), ..Cluster::default() };
        for object in objects.into_values() {
            parse::add(&mut cluster, object).unwrap_or_else(|error| panic!("{place}: {error}"));
        }
        for kind in self.blocks("forbidden").flat_map(|block| yaml::<Vec<String>>(block, place)) {
            let gap = Cluster::forbidden(&kind, "the API server answered 403".to_owned());
            match kind.as_str() {
                "networkpolicies" => cluster.network_policies = netdiag_server::evidence::Kind::unavailable(gap),
                "endpointslices" => cluster.endpoint_slices = netdiag_server::evidence::Kind::unavailable(gap),
                "pods" => cluster.pods = netdiag_server::evidence::Kind::unavailable(gap),
                "nodes" => cluster.nodes = netdiag_server::evidence::Kind::unavailable(gap),
                "services" => cluster.services = netdiag_server::evidence::Kind::unavailable(gap),
                "workloads" => cluster.workloads = netdiag_server::evidence::Kind::unavailable(gap),
                "events" => cluster.events = netdiag_server::evidence::Kind::unavailable(gap),
                "servicecidrs" => cluster.service_cidrs = netdiag_server::evidence::Kind::unavailable(gap),
                other => panic!("{place}: no kind {other} can be forbidden in a story"),
            }
        }
        cluster
    }

    fn told(&self, world: &World, place: &str) -> (BTreeMap<Need, Reading<Observation>>, Vec<ToldProbe>) {
        let own = self.blocks("readings").flat_map(|block| yaml::<Vec<Told>>(block, place));
        let mut told: Vec<Told> = world.readings.iter().cloned().chain(own).collect();
        for link in self.blocks("links").flat_map(|block| yaml::<Vec<MoreLink>>(block, place)) {
            add_link(&mut told, &link, place);
        }
        let readings = told.into_iter().map(|told| reading(told, place)).collect();
        // The story's lines come first: the first that matches answers.
        let mut probes: Vec<ToldProbe> =
            self.blocks("probes").flat_map(|block| yaml::<Vec<ToldProbe>>(block, place)).collect();
        probes.extend(world.probes.iter().cloned());
        (readings, probes)
    }
}

fn add_link(told: &mut [Told], link: &MoreLink, place: &str) {
    let network = |t: &&mut Told| t.node == link.node && t.netns == Netns::Host && t.topic == "network";
    let mut found = false;
    for links in told.iter_mut().filter(network).filter_map(|t| t.seen.as_mut()?.get_mut("links")?.as_array_mut()) {
        let index = 100 + links.len();
        links.push(serde_json::json!({"index": index, "name": link.name, "mtu": 1500, "up": true, "carrier": true}));
        found = true;
    }
    assert!(found, "{place}: node {} has no links to add {} to", link.node, link.name);
}

fn object_key(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match text("/metadata/namespace") {
        "" => format!("{} {}", text("/kind"), text("/metadata/name")),
        namespace => format!("{} {namespace}/{}", text("/kind"), text("/metadata/name")),
    }
}

fn reading(told: Told, place: &str) -> (Need, Reading<Observation>) {
    let at: Timestamp = told.at.unwrap_or_else(|| NOW.parse().expect("a time"));
    let topic: Topic = serde_json::from_value(told.topic.clone())
        .unwrap_or_else(|error| panic!("{place}: topic {}: {error}", told.topic));
    let kind = match &topic {
        Topic::FindFlows(_) => Value::from("found_flows"),
        Topic::PolicyMap(_) => Value::from("policy_map"),
        _ => told.topic.clone(),
    };
    let need = Need { node: told.node, netns: told.netns, topic, window: Window::default() };
    let reading = match (told.seen, told.absent, told.unavailable) {
        (Some(value), false, None) => {
            let value = serde_json::json!({"topic": kind, "value": value});
            let value =
                serde_json::from_value(value).unwrap_or_else(|error| panic!("{place}: {}: {error}", told.topic));
            Reading::Seen { value, at }
        }
        (None, true, None) => Reading::Absent { at },
        (None, false, Some(gap)) => Reading::Unavailable { gap },
        _ => panic!("{place}: a reading is one of seen, absent, unavailable"),
    };
    (need, reading)
}

fn answer(
    need: Need,
    cluster: &Cluster,
    readings: &BTreeMap<Need, Reading<Observation>>,
    probes: &[ToldProbe],
    fates: &[ToldFate],
    at: Timestamp,
) -> (Need, Reading<Observation>) {
    let reading = match &need.topic {
        Topic::Probe(request) => probe::answer(&need, request, probes).map(|value| Reading::Seen { value, at }),
        Topic::Series(request) => series::answer(&need, request, probes).map(|value| Reading::Seen { value, at }),
        Topic::Fate(request) => {
            let story = fate::Story { cluster, readings, told: fates };
            story.fate(&need, request).map(|found| Reading::Seen { value: fate::observation(found), at })
        }
        _ => readings.get(&need).cloned(),
    };
    let reading = reading.unwrap_or_else(|| Reading::Unavailable { gap: ask::not_recorded(&need) });
    (need, reading)
}
