//! What a ladder means: which rung broke, and for whom it holds. Pure.

use super::endpoints;
use super::ladder::{Ladder, Role, Rung, RungName};

/// One sentence. It says where the fault must be, not what it is.
pub fn sentence(ladder: &Ladder) -> String {
    let mut fails = ladder.rungs.iter().enumerate().filter(|(_, rung)| rung.holds(rung.main_role()) == Some(false));
    let Some((index, broken)) = fails.next() else { return nothing_broke(ladder) };
    let others: Vec<String> = fails.map(|(_, rung)| in_words(rung)).collect();
    let mut own = broken.attempts.iter().filter(|climbed| climbed.role == broken.main_role());
    if let Some(sentence) = own.find_map(|climbed| endpoints::sentence(&climbed.tally.endpoints)) {
        return format!("{} works some of the time: {sentence}", in_words(broken));
    }
    let name = in_words(broken);
    let failure = failure_of(broken);
    let held = last_that_held(&ladder.rungs[..index]);
    let twin = broken.holds(Role::Twin);
    let node = broken.holds(Role::Node);
    let client = who(ladder, Role::Client);
    let twin_name = who(ladder, Role::Twin);
    let node_name = who(ladder, Role::Node);
    let other_node = node_of(ladder, Role::Twin) != node_of(ladder, Role::Client);
    let whose = match (broken.rung, twin, node) {
        (RungName::OwnListener, _, _) => {
            return format!(
                "{name} fails ({failure}): the server does not take connections even from itself, so no network is at fault"
            );
        }
        (_, Some(true), Some(true)) => {
            format!(
                "{twin_name} and {node_name} get through, so it is {client} itself: its policies, routes or address"
            )
        }
        (_, Some(true), Some(false)) if other_node => {
            format!("{twin_name} gets through and {node_name} does not, so it is that node: its rules, routes or links")
        }
        (_, Some(true), _) if other_node => {
            format!("{twin_name} on {} gets through, so it is {client} or its node", node_of(ladder, Role::Twin))
        }
        (_, Some(true), _) => format!("{twin_name} gets through, so it is {client} itself"),
        (_, Some(false), Some(true)) => {
            format!(
                "{twin_name} fails too and {node_name} gets through, so it is what applies to pods: a policy, or the pod network"
            )
        }
        (_, Some(false), Some(false)) => {
            format!("{twin_name} and {node_name} fail too, so it is {}", far_side(broken.rung))
        }
        (_, Some(false), None) => format!("{twin_name} fails too, so it is not {client} alone"),
        (_, None, Some(true)) => format!("{node_name} gets through, so it is the pod: its policies, routes or address"),
        (_, None, Some(false)) => format!("{node_name} fails too, so it is not the pod alone"),
        (_, None, None) => "nobody else was there to compare with".to_owned(),
    };
    let held = held.map(|rung| format!("{} holds, ", in_words(rung))).unwrap_or_default();
    let others = if others.is_empty() { String::new() } else { format!("; so does {}", others.join(", ")) };
    format!("{held}{name} fails{} ({failure}); {whose}{others}", in_part(broken))
}

/// With the host, where there is one rung for each.
pub fn in_words(rung: &Rung) -> String {
    let name = rung_in_words(rung.rung);
    if rung.of.is_empty() { name.to_owned() } else { format!("{name} {}", rung.of) }
}

/// As people say it.
pub fn rung_in_words(rung: RungName) -> &'static str {
    match rung {
        RungName::OwnListener => "the endpoint's own listener",
        RungName::PodIp => "the endpoint's address",
        RungName::ClusterIp => "the cluster IP",
        RungName::Name => "the name",
        RungName::NodePort => "the node port",
        RungName::ExternalIp => "the external address",
        RungName::Ingress => "the Ingress host",
        RungName::Gateway => "the Gateway host",
        RungName::Url => "the URL",
    }
}

fn far_side(rung: RungName) -> &'static str {
    match rung {
        RungName::PodIp | RungName::OwnListener => "on the endpoint's side: its policies, its node, or the way to it",
        RungName::ClusterIp => "the Service: it has no endpoint to lead to, or its rules are missing on every node",
        RungName::Name => "the name or the cluster's DNS",
        RungName::NodePort | RungName::ExternalIp | RungName::Ingress | RungName::Gateway | RungName::Url => {
            "the entrance itself, not who comes"
        }
    }
}

fn nothing_broke(ladder: &Ladder) -> String {
    let tried = ladder.rungs.iter().filter(|rung| rung.holds(rung.main_role()).is_some()).count();
    if tried == 0 {
        return "no rung could be tried".to_owned();
    }
    let other = ladder.rungs.iter().find_map(|rung| {
        let role = [Role::Twin, Role::Node].into_iter().find(|role| rung.holds(*role) == Some(false))?;
        Some(format!("{} fails for {} alone", in_words(rung), who(ladder, role)))
    });
    match other {
        Some(other) => format!("all {tried} rungs that were tried hold for {}; {other}", who(ladder, Role::Client)),
        None => format!("all {tried} rungs that were tried hold"),
    }
}

/// ` at 10.244.2.5:8080 (pod shop/web-2 on n2), 3 of 3`, where others of the rung hold.
fn in_part(rung: &Rung) -> String {
    let own: Vec<_> = rung.attempts.iter().filter(|climbed| climbed.role == rung.main_role()).collect();
    if !own.iter().any(|climbed| climbed.tally.succeeded > 0) {
        return String::new();
    }
    let failing = own.iter().filter(|climbed| climbed.tally.failed > 0 && climbed.excuse.is_empty()).map(|climbed| {
        let object = if climbed.object.is_empty() { String::new() } else { format!(" ({})", climbed.object) };
        format!("{}{object}, {} of {}", climbed.to, climbed.tally.failed, climbed.tally.made)
    });
    format!(" at {}", failing.collect::<Vec<_>>().join("; "))
}

fn failure_of(rung: &Rung) -> String {
    let own = rung.attempts.iter().filter(|climbed| climbed.role == rung.main_role() && climbed.excuse.is_empty());
    let failure = own.flat_map(|climbed| &climbed.tally.failures).max_by_key(|failure| failure.count);
    failure.map_or_else(
        || "not told why".to_owned(),
        |failure| match failure.errno.as_str() {
            "" => failure.class.to_string(),
            errno => format!("{}, {errno}", failure.class),
        },
    )
}

fn last_that_held(earlier: &[Rung]) -> Option<&Rung> {
    earlier.iter().rev().find(|rung| rung.holds(rung.main_role()) == Some(true))
}

fn who(ladder: &Ladder, role: Role) -> String {
    let climber = ladder.climbers.iter().find(|climber| climber.role == role && !climber.who.is_empty());
    climber.map_or_else(|| "the client".to_owned(), |climber| climber.who.clone())
}

fn node_of(ladder: &Ladder, role: Role) -> String {
    ladder.climbers.iter().find(|climber| climber.role == role).map(|climber| climber.node.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::ladder::{Climbed, Climber};
    use super::super::tally::{FailureCount, Tally};
    use super::*;
    use netdiag_common::observation::series::{FailureClass, ProbeStage};

    fn tally(works: bool) -> Tally {
        if works {
            return Tally { asked: 3, made: 3, succeeded: 3, ..Tally::default() };
        }
        let failure = FailureCount {
            class: FailureClass::Silence,
            stage: ProbeStage::Connect,
            errno: "ETIMEDOUT".to_owned(),
            said_by: String::new(),
            icmp: String::new(),
            count: 3,
            min_us: 3_000_000,
            max_us: 3_000_000,
            why: "no answer".to_owned(),
        };
        Tally { asked: 3, made: 3, failed: 3, failures: vec![failure], ..Tally::default() }
    }

    fn climbed(role: Role, works: bool) -> Climbed {
        let who = format!("{role:?}");
        let to = "10.0.0.1:80".to_owned();
        Climbed { role, who, to, object: String::new(), tally: tally(works), excuse: String::new(), secret: None }
    }

    /// The rung of cluster IPs fails for the client.
    fn said(twin: Option<bool>, node: Option<bool>, twin_on: &str) -> String {
        let climber = |role, who: &str, node: &str| Climber {
            role,
            who: who.to_owned(),
            node: node.to_owned(),
            why_not: String::new(),
        };
        let mut attempts = vec![climbed(Role::Client, false)];
        attempts.extend(twin.map(|works| climbed(Role::Twin, works)));
        attempts.extend(node.map(|works| climbed(Role::Node, works)));
        let rung = |rung, attempts| Rung { rung, of: String::new(), attempts, not_tried: String::new() };
        let own = rung(RungName::OwnListener, vec![climbed(Role::Server, true)]);
        let broken = rung(RungName::ClusterIp, attempts);
        sentence(&Ladder {
            family: "IPv4".to_owned(),
            climbers: vec![
                climber(Role::Client, "pod/shop/client", "n1"),
                climber(Role::Twin, "pod/shop/client-2", twin_on),
                climber(Role::Node, "node/n1", "n1"),
            ],
            rungs: vec![own, broken],
            conclusion: String::new(),
        })
    }

    #[test]
    fn whoever_else_gets_through_tells_whose_fault_it_is() {
        let alone = said(Some(true), Some(true), "n2");
        assert!(
            alone.starts_with("the endpoint's own listener holds, the cluster IP fails (silence, ETIMEDOUT)"),
            "{alone}"
        );
        assert!(alone.ends_with("so it is pod/shop/client itself: its policies, routes or address"), "{alone}");
        assert!(said(Some(true), Some(false), "n2").contains("so it is that node"));
        assert!(said(Some(false), Some(true), "n2").contains("what applies to pods"));
        assert!(said(Some(false), Some(false), "n2").contains("no endpoint to lead to"));
        assert!(said(None, None, "").contains("nobody else"));
    }
}
