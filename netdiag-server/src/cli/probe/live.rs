//! A series while it runs: asked for in parts, joined, and drawn after each part when somebody watches.

use std::time::{Duration, Instant};

use super::super::Failure;
use super::super::output::{self, Progress, ShortFormat};
use super::super::screen::Screen;
use super::super::source::{Forwarded, Route};
use super::super::stop;
use super::{OwnRights, probe_with};
use crate::answer::probe::ProbeAnswer;
use crate::ask::{AnySource, Source};
use crate::kube::forward::ForwardError;
use crate::probe::secret::SecretName;
use crate::probe::{self, Kind, MAX_REQUEST_MS, PlanError, ProbeRequest, Rights, RunError};

/// How long a part lasts that somebody watches.
const LOOK: Duration = Duration::from_secs(1);
/// The longest part that nobody watches: far below what one request may take.
const PART: Duration = Duration::from_secs(25);
/// Attempts of the first part where nobody knows yet how long one takes.
const FIRST: u32 = 50;
/// Above what a part takes: opening the way to the server, a busy machine.
const PATIENCE: Duration = Duration::from_millis(MAX_REQUEST_MS + 20_000);

/// Sends all of it; what it came to is one answer.
pub(super) async fn run(
    route: Route,
    request: &ProbeRequest,
    rights: &OwnRights,
    output: ShortFormat,
) -> Result<ProbeAnswer, Failure> {
    let mut way = match route {
        Route::Server(server) => Way::Server(server),
        Route::Here(source) => Way::Here(Box::new(source)),
    };
    let answer = stop::unless_told(Box::pin(sent(&mut way, request, rights, output)), Failure).await;
    if let Way::Server(way) = &way {
        way.server.withdraw().await;
    }
    answer
}

async fn sent(
    way: &mut Way,
    request: &ProbeRequest,
    rights: &OwnRights,
    output: ShortFormat,
) -> Result<ProbeAnswer, Failure> {
    let only_from = match way {
        Way::Server(_) => ask_for_rights(request, rights).await?,
        Way::Here(_) => None,
    };
    let request = &ProbeRequest { only_from, ..request.clone() };
    let mut screen = (output == ShortFormat::Text && is_long(request)).then(Screen::enter).flatten();
    let _progress = screen.is_none().then(|| Progress::start("probing"));
    let started = Instant::now();
    let (mut left, mut part) = (request.count(), first_part(request, screen.is_some()));
    let mut whole: Option<ProbeAnswer> = None;
    while left > 0 {
        let begun = Instant::now();
        let count = if is_long(request) { part.min(left) } else { left };
        let next = way.ask(&ProbeRequest { count: Some(count), ..request.clone() }, rights).await?;
        let took = begun.elapsed();
        left -= count;
        let later_us = u64::try_from((begun - started).as_micros()).unwrap_or(u64::MAX);
        // A part whose attempts were not made tells that the rest cannot be made either.
        let is_over = next.series.iter().all(|series| series.tally.made == 0);
        match &mut whole {
            Some(whole) => whole.join(next, later_us),
            None => whole = Some(next),
        }
        if let (Some(screen), Some(whole)) = (&mut screen, &whole) {
            screen.draw(|_| format!("{}\n{left} attempts to go\n", whole.text(output::paint())));
        }
        if is_over {
            break;
        }
        if request.interval_us > 0 && left > 0 {
            let due = Duration::from_micros(request.interval_us.saturating_mul(count.into()));
            tokio::time::sleep(due.saturating_sub(took)).await;
        } else if took * 2 < if screen.is_some() { LOOK } else { PART } {
            part = part.saturating_mul(2);
        }
    }
    if let Some(screen) = screen {
        // The answer stays readable on the screen as it was.
        screen.leave();
    }
    whole.ok_or_else(|| Failure("the count of attempts is 0: use 1 or more".to_owned()))
}

/// Whether parts of it are worth showing, or needed.
fn is_long(request: &ProbeRequest) -> bool {
    !request.follow
        && !matches!(request.kind, Kind::Ladder | Kind::Matrix)
        && request.count() > first_part(request, true)
}

/// Of a length that is known by the interval; else so many that one request has time for them when none is answered.
fn first_part(request: &ProbeRequest, is_watched: bool) -> u32 {
    let length = if is_watched { LOOK } else { PART };
    match (u64::try_from(length.as_micros()).unwrap_or(u64::MAX)).checked_div(request.interval_us) {
        None => {
            let in_turn = u32::try_from(PART.as_millis()).unwrap_or(u32::MAX) / request.timeout_ms().max(1);
            in_turn.max(1).saturating_mul(request.parallel.into()).min(FIRST)
        }
        Some(attempts) => u32::try_from(attempts).unwrap_or(u32::MAX).max(1),
    }
}

/// Before anything is asked for, so that who lacks the right learns it at once; the server asks about it again. The namespaces that
/// the caller may probe from, where those are not all.
async fn ask_for_rights(request: &ProbeRequest, rights: &OwnRights) -> Result<Option<Vec<String>>, Failure> {
    let namespace = match request.from.split('/').collect::<Vec<_>>().as_slice() {
        ["pod", namespace, _] => (*namespace).to_owned(),
        _ => String::new(),
    };
    rights.may_start(&namespace).await.map_err(|denied| Failure(denied.to_string()))?;
    if let Some(secret) = &request.options.secret {
        let secret: SecretName = secret.parse().map_err(|error: PlanError| Failure(error.to_string()))?;
        let may = rights.may_get_secret(&secret.namespace, &secret.name).await;
        may.map_err(|denied| Failure(denied.to_string()))?;
    }
    // The right to probe from nodes is that in all namespaces. A pod with hostNetwork takes it, too, and the server knows which one is.
    if namespace.is_empty() || rights.may_start("").await.is_ok() {
        return Ok(None);
    }
    let mut only = vec![namespace];
    let others = if is_sent_elsewhere(request) { namespaces_besides(request) } else { Vec::new() };
    for other in others {
        if !only.contains(&other) && rights.may_start(&other).await.is_ok() {
            only.push(other);
        }
    }
    Ok(Some(only))
}

/// Whether it is sent from nodes or other pods as well: whoever stands beside the client, and the far side.
fn is_sent_elsewhere(request: &ProbeRequest) -> bool {
    matches!(request.kind, Kind::Ladder | Kind::Matrix | Kind::Mtu)
        || request.kind == Kind::Dns && request.options.server.as_deref() == Some("each")
}

/// Of the target, and of the cluster's DNS, whose pods ask its upstreams.
fn namespaces_besides(request: &ProbeRequest) -> Vec<String> {
    let target = match request.to.split('/').collect::<Vec<_>>().as_slice() {
        ["pod" | "service" | "svc", namespace, _] => Some((*namespace).to_owned()),
        _ => None,
    };
    let dns = (request.kind == Kind::Dns).then(|| "kube-system".to_owned());
    target.into_iter().chain(dns).collect()
}

/// Who is asked, part for part.
enum Way {
    Server(Box<Forwarded>),
    Here(Box<AnySource>),
}

impl Way {
    async fn ask(&mut self, request: &ProbeRequest, rights: &OwnRights) -> Result<ProbeAnswer, Failure> {
        match self {
            Self::Server(way) => {
                let answer = way.server.post_proven("/v1/probe", request, PATIENCE).await;
                answer.map_err(|error| match error {
                    ForwardError::Refused(why) => Failure(why),
                    ForwardError::Unreached(why) => Failure(format!(
                        "no server to ask ({why}), and nothing can be sent without agents: use --direct --tls-dir DIR"
                    )),
                })
            }
            Self::Here(source) => {
                let cluster = source.cluster().await?;
                let plan = probe::plan(request, &cluster).map_err(RunError::from)?;
                Ok(probe_with(&**source, cluster, plan, rights, Some("the command line".to_owned())).await?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_long_as_somebody_looks() {
        let tcp = ProbeRequest::new(Kind::Tcp, "node/n1", "10.0.0.1:80");
        let even = ProbeRequest { count: Some(100_000), interval_us: 1_000, ..tcp.clone() };
        assert_eq!((first_part(&even, true), first_part(&even, false)), (1_000, 25_000));
        let slow = ProbeRequest { interval_us: 60_000_000, ..even.clone() };
        assert_eq!(first_part(&slow, true), 1, "one is asked for however long it waits");
        let silent = ProbeRequest { interval_us: 0, ..even.clone() };
        assert_eq!(first_part(&silent, true), 5, "none of five is answered in 5 s each");
        assert_eq!(first_part(&ProbeRequest { parallel: 100, ..silent }, true), FIRST);
    }

    #[test]
    fn what_cannot_be_continued_is_asked_for_at_once() {
        let many = |kind| ProbeRequest { count: Some(1_000), ..ProbeRequest::new(kind, "node/n1", "10.0.0.1:80") };
        assert!(is_long(&many(Kind::Tcp)) && !is_long(&ProbeRequest { count: Some(3), ..many(Kind::Tcp) }));
        assert!(!is_long(&many(Kind::Ladder)) && !is_long(&many(Kind::Matrix)));
        assert!(!is_long(&ProbeRequest { follow: true, ..many(Kind::Tcp) }));
    }

    #[test]
    fn rights_are_asked_for_wherever_it_is_sent_from() {
        let of = |kind, to: &str| ProbeRequest::new(kind, "pod/shop/client", to);
        let ladder = of(Kind::Ladder, "service/pay/ledger:80");
        assert!(is_sent_elsewhere(&ladder) && !is_sent_elsewhere(&of(Kind::Tcp, "service/pay/ledger:80")));
        assert_eq!(namespaces_besides(&ladder), ["pay"]);
        assert_eq!(namespaces_besides(&of(Kind::Mtu, "10.244.2.5")), Vec::<String>::new());
        let mut each = of(Kind::Dns, "example.com");
        assert!(!is_sent_elsewhere(&each));
        each.options.server = Some("each".to_owned());
        assert!(is_sent_elsewhere(&each));
        assert_eq!(namespaces_besides(&each), ["kube-system"]);
    }
}
