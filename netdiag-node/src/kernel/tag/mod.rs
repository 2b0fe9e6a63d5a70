//! Tagged packets, from the programs in `hook/tag.rs`: loaded when the first tag is armed, attached while any is.
//!
//! Whoever owns [`KernelTags`] reads its ring while a tag is armed. Nothing is pinned: when it is dropped, all is gone.

mod event;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use netdiag_common::observation::tag::{TagRequest, TagTuple};
use netdiag_common::record::tag::{ANSWERS, Counts, Event, PORT_WORDS, TAGS};

use super::btf::Btf;
use super::failure::failed;
use super::layout::{self, Reasons};
use super::object::{Link, Loaded, Object, Running, Way};
use super::plan::Plan;
use super::{LoadError, alone};
use event::{Key, decode, keys};

/// Keys of one tag: each of its tuples, there and back.
#[expect(clippy::cast_possible_truncation, reason = "sixteen")]
const KEYS_OF_TAG: u32 = 2 * (1 + netdiag_common::observation::tag::MAX_TAG_ALTERNATIVES as u32);
/// A thousand events, and the ring is read fifty times a second.
const RING_BYTES: u32 = 256 * 1024;
/// How often it is looked whether the programs have left a tag that is being disarmed: they take microseconds.
const LOOKS: usize = 100;
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The tracepoints, in the order of the way.
static HOOKS: [(&str, [Way; 2]); 4] = [
    ("netif_receive_skb", ways!("netif_receive_skb", "netdiag_tag_in", "netdiag_tag_in_raw")),
    ("net_dev_queue", ways!("net_dev_queue", "netdiag_tag_out", "netdiag_tag_out_raw")),
    ("kfree_skb", ways!("kfree_skb", "netdiag_tag_drop", "netdiag_tag_drop_raw")),
    ("inet_sock_set_state", ways!("inet_sock_set_state", "netdiag_tag_state", "netdiag_tag_state_raw")),
];

/// The loaded programs, and what is armed.
pub struct KernelTags {
    running: Running,
    programs: Vec<Loaded>,
    /// None while no tag is armed.
    links: Vec<Link>,
    ring: RingBuf<MapData>,
    tuples: HashMap<MapData, Key, u32>,
    ports: Array<MapData, u64>,
    /// Words of `ports` that are not 0.
    port_words: BTreeMap<u32, u64>,
    counts: Array<MapData, Counted>,
    reasons: Reasons,
    has_conntrack: bool,
    tags: [Option<Armed>; TAGS as usize],
}

/// [`Counts`] as the map's reader wants them.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Counted(Counts);

// SAFETY: integers only.
unsafe impl aya::Pod for Counted {}

struct Armed {
    keys: Vec<Key>,
    events: Vec<Event>,
    /// Of the programs, when it was armed.
    misses: u64,
}

/// What was caught of a tag that is no longer armed.
pub struct Caught {
    events: Vec<Event>,
    counts: Counts,
    missed: u64,
}

/// Why a tag is not armed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    #[error("{TAGS} tags are armed on this node, which is the limit")]
    Full,
    #[error("another tag follows {0}")]
    Taken(TagTuple),
    #[error(transparent)]
    Kernel(#[from] LoadError),
}

/// What the plan said, until the programs are loaded.
pub(super) struct Planned {
    reasons: Reasons,
    has_conntrack: bool,
}

impl KernelTags {
    /// Whether this kernel has what the programs need, as far as its types tell. Loads nothing.
    pub(super) fn look(btf: &Btf<'_>) -> Result<(), LoadError> {
        Self::plan(btf, &mut Plan::default()).map(drop)
    }

    fn plan(btf: &Btf<'_>, plan: &mut Plan) -> Result<Planned, LoadError> {
        for (tracepoint, _) in &HOOKS {
            btf.tracepoint_arguments(tracepoint).ok_or(LoadError::NoTracepoint { tracepoint })?;
        }
        layout::packet(btf, plan)?;
        layout::socket(btf, plan)?;
        layout::kfree_skb(btf, plan);
        layout::conntrack(btf, plan);
        plan.set("O_SKB_DATA", layout::offset(btf, "sk_buff", "data", 8)?);
        plan.set("O_TCP_RECEIVED", layout::offset(btf, "tcp_sock", "rcv_nxt", 4)?);
        plan.size("TAG_TUPLES", TAGS * KEYS_OF_TAG);
        plan.size("TAG_EVENTS", RING_BYTES);
        let reasons = Reasons::of(btf, plan.has("HAS_REASON", 1_u32));
        Ok(Planned { reasons, has_conntrack: plan.has("HAS_CONNTRACK", 1_u32) })
    }

    /// Loads the programs, which do not run yet. Takes about a second.
    pub fn load() -> Result<Self, LoadError> {
        alone(Self::plan, Self::open)
    }

    fn open(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        let programs = HOOKS.iter().map(|(hook, ways)| object.load(hook, ways)).collect::<Result<_, _>>()?;
        Ok(Self {
            running: object.running(),
            programs,
            links: Vec::new(),
            ring: object.ring("TAG_EVENTS")?,
            tuples: HashMap::try_from(object.take("TAG_TUPLES")?).map_err(unusable)?,
            ports: array(object.take("TAG_PORTS")?)?,
            port_words: BTreeMap::new(),
            counts: array(object.take("TAG_COUNTS")?)?,
            reasons: planned.reasons,
            has_conntrack: planned.has_conntrack,
            tags: [const { None }; TAGS as usize],
        })
    }

    /// Whether the programs run now.
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Follows the packets of a request, whose limits the caller has checked, until [`KernelTags::disarm`] with the number that
    /// this returns.
    pub fn arm(&mut self, request: &TagRequest) -> Result<usize, ArmError> {
        let number = self.tags.iter().position(Option::is_none).ok_or(ArmError::Full)?;
        let wanted = keys(request);
        for (key, (_, tuple)) in &wanted {
            if self.tags.iter().flatten().any(|other| other.keys.contains(key)) {
                return Err(ArmError::Taken(*tuple));
            }
        }
        let misses = self.misses();
        let keys = wanted.keys().copied().collect();
        self.tags[number] = Some(Armed { keys, events: Vec::new(), misses });
        let armed = self.write(number, wanted.iter().map(|(key, (is_answer, _))| (key, *is_answer)));
        if let Err(error) = armed {
            self.tags[number] = None;
            self.forget(wanted.keys());
            return Err(error.into());
        }
        Ok(number)
    }

    fn write<'a>(&mut self, number: usize, keys: impl Iterator<Item = (&'a Key, bool)>) -> Result<(), LoadError> {
        let number = u32::try_from(number).expect("16 tags");
        self.counts.set(number, Counted(Counts::default()), 0).map_err(unusable)?;
        for (key, is_answer) in keys {
            let value = (number + 1) | if is_answer { ANSWERS } else { 0 };
            self.tuples.insert(key, value, 0).map_err(unusable)?;
        }
        self.write_ports()?;
        if self.links.is_empty() {
            for loaded in &self.programs {
                let link = self.running.start(loaded).map_err(|error| failed("attach the programs of tags", &error));
                // What is attached already goes with the error.
                match link {
                    Ok(link) => self.links.push(link),
                    Err(error) => {
                        self.links.clear();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets the bits of the armed tags' ports, and no others.
    fn write_ports(&mut self) -> Result<(), LoadError> {
        let mut words: BTreeMap<u32, u64> = BTreeMap::new();
        for port in self.tags.iter().flatten().flat_map(|tag| tag.keys.iter().map(Key::port)) {
            *words.entry(u32::from(port >> 6)).or_default() |= 1 << (port & 63);
        }
        for (word, bits) in &words {
            debug_assert!(*word < PORT_WORDS);
            self.ports.set(*word, *bits, 0).map_err(unusable)?;
        }
        for word in self.port_words.keys().filter(|word| !words.contains_key(word)) {
            self.ports.set(*word, 0, 0).map_err(unusable)?;
        }
        self.port_words = words;
        Ok(())
    }

    /// Takes the tuples out, and the programs off when nobody is left. What cannot be taken out finds no tag any more.
    fn forget<'a>(&mut self, keys: impl Iterator<Item = &'a Key>) {
        for key in keys {
            let _ = self.tuples.remove(key);
        }
        let _ = self.write_ports();
        if self.tags.iter().all(Option::is_none) {
            self.links.clear();
        }
    }

    /// To be called some fifty times a second while a tag is armed: the ring holds a thousand events. Says how many it read.
    pub fn drain(&mut self) -> usize {
        let mut read = 0;
        while let Some(bytes) = self.ring.next() {
            let Some(event) = decode(&bytes) else { continue };
            if let Some(Some(tag)) = self.tags.get_mut(usize::from(event.tag)) {
                tag.events.push(event);
                read += 1;
            }
        }
        read
    }

    /// Ends a tag, and gives what was caught of it; none when it is not armed.
    pub fn disarm(&mut self, number: usize) -> Option<Caught> {
        let keys = self.tags.get(number)?.as_ref()?.keys.clone();
        for key in &keys {
            let _ = self.tuples.remove(key);
        }
        let counts = self.settled(number);
        let missed = self.misses();
        let armed = self.tags[number].take()?;
        self.forget([].iter());
        Some(Caught { events: armed.events, counts, missed: missed.saturating_sub(armed.misses) })
    }

    /// The counts once no program is at work for the tag any more, and all that they sent is read.
    fn settled(&mut self, number: usize) -> Counts {
        let row = u32::try_from(number).expect("16 tags");
        let mut counts = Counts::default();
        for _ in 0..LOOKS {
            self.drain();
            counts = self.counts.get(&row, 0).map_or(counts, |counted| counted.0);
            let told = self.tags[number].as_ref().map_or(0, |tag| tag.events.len() as u64);
            if counts.kept == told && counts.seen == counts.kept + counts.beyond_limit + counts.ring_full {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        counts
    }

    fn misses(&self) -> u64 {
        self.programs.iter().map(Loaded::recursion_misses).sum()
    }
}

fn array<V: aya::Pod>(map: Map) -> Result<Array<MapData, V>, LoadError> {
    Array::try_from(map).map_err(unusable)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(error: MapError) -> LoadError {
    failed("use the tables of tags", &error)
}
