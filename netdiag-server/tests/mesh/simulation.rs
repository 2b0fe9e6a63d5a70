//! Every round of a cycle, played: who probes whom, and when a link that breaks now is probed next.
//!
//! In the largest clusters the pairs among some hundred nodes are followed through all rounds, and all nodes through some.

use netdiag_server::mesh::assign::Layout;

/// Clusters of more nodes are followed in part.
const ALL_FOLLOWED: usize = 1_000;
/// Then every node with a number that this divides; a prime, so that they are of all zones. Of 5 000 nodes there are 385, with
/// 73 920 pairs at nearly all distances.
const STRIDE: usize = 13;
/// Rounds in which all nodes of such a cluster are played.
const WHOLE_ROUNDS: u64 = 4;

/// What came of one cluster.
pub struct Simulated {
    pub nodes: usize,
    /// Peers of one node in one round, least and most.
    pub peers: (usize, usize),
    pub mean_peers: f64,
    /// Nodes that probe one node in one round, least and most.
    pub probed: (usize, usize),
    /// Rounds after which each ordered pair should have been probed.
    pub cycle: u64,
    /// Ordered pairs that were not.
    pub uncovered: usize,
    /// Rounds that a link between two nodes waits for its next turn in either direction, whichever it is and whenever it breaks.
    pub mean_wait_rounds: f64,
    pub worst_wait_rounds: u64,
    /// Rounds after which every ordered pair of zones was probed.
    pub zones_per_round: u64,
}

impl Simulated {
    pub fn run(nodes: usize, zones: usize) -> Self {
        let named: Vec<(String, String)> =
            (0..nodes).map(|n| (format!("node-{n}.example"), format!("zone-{}", n % zones))).collect();
        let list: Vec<(&str, &str)> = named.iter().map(|(name, zone)| (name.as_str(), zone.as_str())).collect();
        let layout = Layout::new(&list);
        let cycle = layout.cycle();
        let stride = if nodes > ALL_FOLLOWED { STRIDE } else { 1 };
        let followed = nodes.div_ceil(stride);
        let mut seen = vec![false; followed * followed];
        let mut waits = Waits::new(followed, cycle);
        let (mut peers, mut probed_span) = ((usize::MAX, 0), (usize::MAX, 0));
        let (mut sum, mut played) = (0, 0);
        let mut zones_per_round = 1;
        for round in 0..cycle {
            let is_whole = stride == 1 || round < WHOLE_ROUNDS;
            let mut probed = vec![0; nodes];
            let mut between = vec![false; zones * zones];
            for node in (0..nodes).step_by(if is_whole { 1 } else { stride }) {
                let now = layout.peers(node, round);
                (sum, played) = (sum + now.len(), played + 1);
                widen(&mut peers, now.len());
                for peer in now {
                    probed[peer] += 1;
                    between[(node % zones) * zones + peer % zones] = true;
                    if node % stride == 0 && peer % stride == 0 {
                        let (one, other) = (node / stride, peer / stride);
                        seen[one * followed + other] = true;
                        waits.probed(one, other, round);
                    }
                }
            }
            if !is_whole {
                continue;
            }
            for count in probed {
                widen(&mut probed_span, count);
            }
            let missed = (0..zones * zones).any(|pair| pair / zones != pair % zones && !between[pair]);
            zones_per_round = zones_per_round.max(u64::from(missed) * cycle);
        }
        let uncovered = seen.iter().filter(|seen| !**seen).count() - followed;
        let (mean_wait_rounds, worst_wait_rounds) = waits.result();
        #[expect(clippy::cast_precision_loss, reason = "some millions")]
        let mean_peers = sum as f64 / f64::from(played);
        let (probed, worst_wait_rounds) = (probed_span, u64::from(worst_wait_rounds));
        Self {
            nodes,
            peers,
            mean_peers,
            probed,
            cycle,
            uncovered,
            mean_wait_rounds,
            worst_wait_rounds,
            zones_per_round,
        }
    }
}

fn widen(span: &mut (usize, usize), to: usize) {
    *span = (span.0.min(to), span.1.max(to));
}

/// For each unordered pair: when it was probed first and last, and how long it waited in between. Cycles repeat, so the wait
/// over the end of one is that from the last turn to the first of the next.
struct Waits {
    cycle: u16,
    first: Vec<u16>,
    last: Vec<u16>,
    /// Sum over the gaps between two turns of what links that break in them wait.
    sums: Vec<u32>,
    worst: u16,
}

/// Of a pair that had no turn yet.
const NEVER: u16 = u16::MAX;

impl Waits {
    fn new(nodes: usize, cycle: u64) -> Self {
        let pairs = nodes * (nodes - 1) / 2;
        let cycle = u16::try_from(cycle).expect("some hundred rounds");
        Self { cycle, first: vec![NEVER; pairs], last: vec![NEVER; pairs], sums: vec![0; pairs], worst: 0 }
    }

    fn probed(&mut self, one: usize, other: usize, round: u64) {
        let (low, high) = (one.min(other), one.max(other));
        let pair = high * (high - 1) / 2 + low;
        let round = u16::try_from(round).expect("some hundred rounds");
        if self.first[pair] == NEVER {
            self.first[pair] = round;
        } else {
            self.gap(pair, round - self.last[pair]);
        }
        self.last[pair] = round;
    }

    /// A link that breaks in the middle of a round in which it was probed is seen at once; in the next ones it waits.
    fn gap(&mut self, pair: usize, rounds: u16) {
        self.sums[pair] += (0..u32::from(rounds)).sum::<u32>();
        self.worst = self.worst.max(rounds.saturating_sub(1));
    }

    /// Mean over all pairs and rounds, and the worst.
    fn result(mut self) -> (f64, u16) {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for pair in 0..self.first.len() {
            if self.first[pair] == NEVER {
                continue;
            }
            self.gap(pair, self.first[pair] + self.cycle - self.last[pair]);
            sum += f64::from(self.sums[pair]) / f64::from(self.cycle);
            pairs += 1.0;
        }
        (if pairs > 0.0 { sum / pairs } else { 0.0 }, self.worst)
    }
}
