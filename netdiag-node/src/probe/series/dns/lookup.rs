//! The lookup that a program in the namespace would make: glibc's getaddrinfo with `hosts: files dns`.

use std::net::IpAddr;
use std::time::Instant;

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::dns::{DnsTimeouts, DnsType};
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};

use super::super::context::{Context, silence};
use super::ledger::Ledger;
use super::message::{Answer, Question};
use super::options::{Options, candidates};
use super::send::{Sender, Unanswered};
use crate::rcode::rcode_name;

const NOERROR: u16 = 0;
const SERVFAIL: u16 = 2;
const NXDOMAIN: u16 = 3;
/// What glibc offers with `options edns0` (`RESOLV_EDNS_BUFFER_SIZE`, resolv/resolv-internal.h).
const EDNS_BYTES: u16 = 1_200;

/// What a lookup came to.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) ledger: Ledger,
    pub(super) addresses: Vec<IpAddr>,
    /// `/etc/hosts` has the name.
    pub(super) by_hosts: bool,
    /// getaddrinfo(3)'s word; none where it would have succeeded, or would still be waiting.
    pub(super) code: Option<&'static str>,
    pub(super) timeouts: Option<DnsTimeouts>,
    pub(super) failure: Option<ProbeFailure>,
}

/// h_errno of netdb.h, and one for the attempt's own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Miss {
    HostNotFound,
    NoData,
    TryAgain { is_servfail: bool, is_final: bool },
    NoRecovery,
    Over,
}

/// `records`: what is asked; A and AAAA together where both are there.
pub(super) async fn lookup(
    context: &Context,
    resolver: &Resolver,
    name: &str,
    records: &[DnsType],
    together: bool,
    edns_bytes: Option<u16>,
    until: Instant,
) -> Looked {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Looked { addresses: vec![address], ..Looked::default() };
    }
    // What else is asked for is no matter of hosts.
    if records.iter().copied().all(is_address) {
        let addresses = in_hosts(resolver, name, records);
        if !addresses.is_empty() {
            return Looked { addresses, by_hosts: true, ..Looked::default() };
        }
    }
    if let Err(why) = Question::new(name, DnsType::A, None) {
        return Looked { failure: Some(failed(FailureClass::Local, why)), ..Looked::default() };
    }
    let mut options = Options::new(resolver);
    options.single_request |= !together;
    let edns = edns_bytes.or(options.edns.then_some(EDNS_BYTES));
    let each_ms = options.timeout_s.max(1).saturating_mul(1_000);
    let mut groups: Vec<Vec<DnsType>> = Vec::new();
    let addresses: Vec<_> = [DnsType::A, DnsType::Aaaa].into_iter().filter(|one| records.contains(one)).collect();
    let addresses: Vec<_> = addresses.into_iter().filter(|one| *one != DnsType::Aaaa || !options.no_aaaa).collect();
    if !addresses.is_empty() {
        groups.push(addresses);
    }
    groups.extend(records.iter().filter(|record| !is_address(**record)).map(|record| vec![*record]));

    let names = candidates(name, &options);
    let mut sender = Sender::new(context, options, until);
    let mut looked = Looked::default();
    let mut miss = None;
    for group in &groups {
        match search(&mut sender, &names, group, edns).await {
            Ok(answers) => {
                let found = answers.iter().flatten().flat_map(|answer| answer.told.addresses.iter().copied());
                looked.addresses.extend(found);
                if group.iter().copied().all(is_address) && looked.addresses.is_empty() {
                    // Only an alias came.
                    miss = miss.or(Some(Miss::NoData));
                }
            }
            Err(met) => miss = miss.or(Some(met)),
        }
    }
    looked.code = miss.and_then(code);
    looked.failure = miss.map(|miss| why(miss, &mut sender, name));
    let count = sender.timeouts;
    looked.timeouts = (count > 0).then_some(DnsTimeouts { count, each_ms });
    looked.ledger = sender.ledger;
    looked
}

fn is_address(record: DnsType) -> bool {
    matches!(record, DnsType::A | DnsType::Aaaa)
}

/// Of the families that are asked for. A name of one family alone is found: the other is not looked for at any server.
fn in_hosts(resolver: &Resolver, name: &str, records: &[DnsType]) -> Vec<IpAddr> {
    let is_wanted = |address: &IpAddr| records.contains(if address.is_ipv4() { &DnsType::A } else { &DnsType::Aaaa });
    resolver.in_hosts(name).into_iter().filter(is_wanted).collect()
}

/// `__res_context_search` (resolv/res_query.c): the names in turn, and which of several misses counts.
async fn search(
    sender: &mut Sender<'_>,
    names: &[(bool, String)],
    records: &[DnsType],
    edns: Option<u16>,
) -> Result<Vec<Option<Answer>>, Miss> {
    let (mut as_it_is, mut last) = (None, Miss::HostNotFound);
    let (mut got_nodata, mut got_servfail, mut is_list_over) = (false, false, false);
    for (is_as_it_is, name) in names {
        if is_list_over && !is_as_it_is {
            continue;
        }
        let miss = match query(sender, name, records, edns).await {
            Ok(answers) => return Ok(answers),
            Err(Miss::Over) => return Err(Miss::Over),
            Err(miss) => miss,
        };
        last = miss;
        if *is_as_it_is {
            as_it_is = Some(miss);
            continue;
        }
        match miss {
            // Nobody is there: the resolver asks nothing more.
            Miss::TryAgain { is_final: true, .. } => return Err(miss),
            Miss::NoData => got_nodata = true,
            Miss::HostNotFound => {}
            Miss::TryAgain { is_servfail: true, .. } => got_servfail = true,
            // Anything else ends the list, and the name as it is gets its turn.
            Miss::TryAgain { .. } | Miss::NoRecovery | Miss::Over => is_list_over = true,
        }
    }
    // Asked first, it counts most; asked last, what the list had comes before it.
    let was_first = names.first().is_some_and(|(is_as_it_is, _)| *is_as_it_is);
    Err(match as_it_is {
        Some(miss) if was_first => miss,
        _ if got_nodata => Miss::NoData,
        _ if got_servfail => again(true),
        _ => last,
    })
}

/// `__res_context_query`: one name, and what its answers say.
async fn query(
    sender: &mut Sender<'_>,
    name: &str,
    records: &[DnsType],
    edns: Option<u16>,
) -> Result<Vec<Option<Answer>>, Miss> {
    let questions: Result<Vec<_>, _> = records.iter().map(|record| Question::new(name, *record, edns)).collect();
    // Too long with a domain of the list behind it.
    let Ok(questions) = questions else { return Err(Miss::NoRecovery) };
    sender.refusal = None;
    let answers = match sender.send(&questions).await {
        Ok(answers) => answers,
        Err(Unanswered::Over) => return Err(Miss::Over),
        Err(Unanswered::Nobody) => return Err(Miss::TryAgain { is_servfail: false, is_final: true }),
        Err(Unanswered::InVain) => return Err(again(sender.refusal == Some(SERVFAIL))),
    };
    let heard: Vec<_> = answers.iter().flatten().collect();
    if heard.iter().any(|answer| answer.broken.is_some()) {
        return Err(Miss::NoRecovery);
    }
    if heard.iter().any(|answer| answer.rcode == NOERROR && answer.answers > 0) {
        return Ok(answers);
    }
    let rcode = heard.iter().map(|answer| answer.rcode).find(|rcode| *rcode != NOERROR);
    if rcode.is_some() {
        sender.refusal = rcode;
    }
    Err(match rcode {
        // Also where the other half of a pair never came.
        None => Miss::NoData,
        Some(NXDOMAIN) => Miss::HostNotFound,
        Some(SERVFAIL) => again(true),
        Some(_) => Miss::NoRecovery,
    })
}

fn again(is_servfail: bool) -> Miss {
    Miss::TryAgain { is_servfail, is_final: false }
}

fn code(miss: Miss) -> Option<&'static str> {
    match miss {
        // glibc tells a program nothing else of an answer that it cannot use (`get_nss_addresses`, sysdeps/posix/getaddrinfo.c).
        Miss::HostNotFound | Miss::NoRecovery => Some("EAI_NONAME"),
        Miss::NoData => Some("EAI_NODATA"),
        Miss::TryAgain { .. } => Some("EAI_AGAIN"),
        Miss::Over => None,
    }
}

fn why(miss: Miss, sender: &mut Sender<'_>, name: &str) -> ProbeFailure {
    let refused = |rcode: u16| failed(FailureClass::Rcode, format!("{name}: {}", rcode_name(rcode)));
    match miss {
        Miss::HostNotFound => refused(NXDOMAIN),
        Miss::NoData => {
            failed(FailureClass::NoData, format!("{name}: the name exists without an address or record of this type"))
        }
        Miss::Over => silence(ProbeStage::Lookup, format!("{name}: the attempt's time was over before the lookup's")),
        Miss::TryAgain { .. } | Miss::NoRecovery => match (sender.refusal, sender.trouble.take()) {
            (Some(rcode), _) if rcode != NOERROR => refused(rcode),
            (_, Some(trouble)) => ProbeFailure { why: format!("{name}: {}", trouble.why), ..trouble },
            _ => failed(
                FailureClass::Protocol,
                format!("{name}: the answer cannot be read, or the name is too long with its search list"),
            ),
        },
    }
}

pub(super) fn failed(class: FailureClass, why: String) -> ProbeFailure {
    ProbeFailure { stage: ProbeStage::Lookup, class, errno: None, said_by: None, icmp: None, why }
}
