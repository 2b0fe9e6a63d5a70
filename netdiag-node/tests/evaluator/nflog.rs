//! What the kernel says of packets in legacy tables: `trace_packet` of `ip_tables.c`, through `nfnetlink_log`.

use std::fmt;

use netdiag_common::forwarding::expression::{Data, Verdict};
use netdiag_common::forwarding::path::{Decision, Path};
use netdiag_common::forwarding::state::{BaseChain, ChainKey, Family};
use netdiag_common::forwarding::{Expression, Packet, RuleState};
use netdiag_common::observation::fate::FateRule;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_ULOG`
const LOG: u16 = 4;

/// Where packets that are traced go, and nothing else in this namespace.
pub struct Log(Socket);

/// One line, such as `TRACE: filter:INPUT:rule:2`. The mark is the one before the rule's target.
#[derive(Clone, PartialEq, Eq)]
pub struct Line {
    /// `NFPROTO_*`
    pub family: u8,
    pub text: String,
    pub mark: u32,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} mark {:#x}", self.family, self.text, self.mark)
    }
}

impl Log {
    /// Takes all that is traced in this namespace; why it cannot otherwise.
    pub fn open() -> Result<Self, String> {
        for family in [2, 10] {
            let path = format!("/proc/sys/net/netfilter/nf_log/{family}");
            std::fs::write(&path, "nfnetlink_log").map_err(|error| format!("cannot write {path}: {error}"))?;
        }
        let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        socket.set_rx_buf_sz(4 << 20_usize).unwrap();
        // Bind to group 0, copy no packets, send each at once (`NFULA_CFG_CMD`, `NFULA_CFG_MODE`, `NFULA_CFG_QTHRESH`).
        for (attribute, value) in [(1_u16, &[1_u8][..]), (2, &[0, 0, 0, 0, 1, 0]), (5, &[0, 0, 0, 1])] {
            let mut body = vec![0, 0, 0, 0];
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(attribute.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
            let mut request = Vec::from(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
            // `NFULNL_MSG_CONFIG` with NLM_F_REQUEST and NLM_F_ACK.
            request.extend((LOG << 8 | 1).to_ne_bytes());
            request.extend(5_u16.to_ne_bytes());
            request.extend([0; 8]);
            request.extend(body);
            socket.send_to(&request, &SocketAddr::new(0, 0), 0).unwrap();
            let mut answer = [0; 128];
            socket.recv(&mut &mut answer[..], 0).unwrap();
            if answer[16..20] != [0; 4] {
                return Err("cannot take what is traced (nfnetlink_log)".into());
            }
        }
        Ok(Self(socket))
    }

    /// All lines since the last call.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length) = self.0.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT) {
            let mut rest = &buffer[..length];
            while rest.len() >= 20 {
                let length = usize::try_from(u32::from_ne_bytes(rest[..4].try_into().unwrap())).unwrap();
                lines.extend(line(&rest[16..length]));
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        lines
    }
}

/// `NFULA_MARK`, `NFULA_PREFIX`
fn line(message: &[u8]) -> Option<Line> {
    let (mark, prefix) = (2, 10);
    let attributes = &message[4..];
    let text = find(attributes, prefix)?;
    let text = String::from_utf8_lossy(text).trim_end_matches(['\0', ' ']).to_owned();
    let mark = find(attributes, mark).map_or(0, |mark| u32::from_be_bytes(mark.try_into().unwrap()));
    Some(Line { family: message[0], text, mark })
}

/// Whether the kernel said what it says when a packet takes this path.
pub fn is_expected(path: &Path, packet: &Packet, state: &RuleState, lines: &[Line]) -> bool {
    // Whether a table without rules comes before or after a chain of nf_tables is all the same.
    let native = |base: &BaseChain| !base.key.family.is_legacy() && &*base.key.table != "probe";
    let beside = state.hooks.iter().flat_map(|hooks| &hooks.chains).any(native);
    let counts = |line: &&Line| !(beside && line.text.ends_with(":policy:1"));
    expected(path, packet, state).iter().filter(counts).eq(lines.iter().filter(counts))
}

/// Whether all legacy rules on a path are there in words, as their command lists them.
pub fn is_worded(path: &Path, rules: &[FateRule]) -> bool {
    path.decisions.iter().all(|decision| match decision {
        Decision::Rule { chain, handle, .. } if chain.family.is_legacy() => rules.iter().any(|rule| {
            rule.chain == *chain && rule.handle == *handle && rule.text.starts_with(&format!("-A {}", chain.chain))
        }),
        _ => true,
    })
}

/// What the kernel says when a packet takes this path.
pub fn expected(path: &Path, packet: &Packet, state: &RuleState) -> Vec<Line> {
    let mut mark = packet.mark.known().copied().unwrap_or(0);
    let mut lines = Vec::new();
    for decision in &path.decisions {
        let (chain, kind, number, after) = match decision {
            Decision::Rule { chain, handle, mark, .. } => (chain, kind_of(chain, *handle, state), *handle, *mark),
            Decision::EndOfChain { chain, mark, .. } => {
                // Of a base chain, its policy is the end.
                if is_base(chain, state) {
                    continue;
                }
                (chain, "return", end_of(chain, state), *mark)
            }
            Decision::Policy { chain, .. } => (chain, "policy", end_of(chain, state), None),
            _ => continue,
        };
        if chain.family.is_legacy() {
            let family = if chain.family == Family::LegacyIp { 2 } else { 10 };
            let text = format!("TRACE: {}:{}:{kind}:{number}", chain.table, chain.chain);
            lines.push(Line { family, text, mark });
        }
        mark = after.unwrap_or(mark);
    }
    lines
}

/// The kernel takes a rule without conditions that ends a chain for its end (`get_chainname_rulenum`).
fn kind_of(chain: &ChainKey, handle: u64, state: &RuleState) -> &'static str {
    let rules = state.chains.0.get(chain).and_then(Option::as_ref).map(|chain| &chain.rules[..]).unwrap_or_default();
    let rule = usize::try_from(handle - 1).ok().and_then(|at| rules.get(at));
    let Some(rule) = rule.filter(|rule| rule.comment.is_none()) else { return "rule" };
    match &rule.expressions[..] {
        [Expression::Immediate { data, .. }] if !leads_on(data) => {
            if is_base(chain, state) {
                "policy"
            } else {
                "return"
            }
        }
        _ => "rule",
    }
}

fn leads_on(data: &Data) -> bool {
    matches!(data, Data::Verdict(Verdict::Jump(_) | Verdict::Goto(_)))
}

fn is_base(chain: &ChainKey, state: &RuleState) -> bool {
    state.hooks.as_ref().is_some_and(|hooks| hooks.chains.iter().any(|base| base.key == *chain))
}

/// The number of what ends a chain.
fn end_of(chain: &ChainKey, state: &RuleState) -> u64 {
    let rules = state.chains.0.get(chain).and_then(Option::as_ref).map_or(0, |chain| chain.rules.len());
    rules as u64 + 1
}

/// The first attribute of a kind.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}
