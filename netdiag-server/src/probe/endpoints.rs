//! Repeat N: what each endpoint behind an address does, said exactly instead of as an average over all of them.

use super::stats;
use super::tally::EndpointCount;

/// Of the intervals.
pub const CONFIDENCE: f64 = 0.95;
/// Below this an endpoint that differs from the others is not explained by chance.
pub const UNLIKELY: f64 = 0.05;

/// Writes each endpoint's interval, and how likely it differs from the others by chance.
pub(super) fn judge(endpoints: &mut [EndpointCount]) {
    let made: u64 = endpoints.iter().map(|endpoint| endpoint.made).sum();
    let failed: u64 = endpoints.iter().map(|endpoint| endpoint.failed).sum();
    for endpoint in endpoints {
        (endpoint.low, endpoint.high) = stats::binomial_interval(endpoint.failed, endpoint.made, CONFIDENCE);
        let others = (failed - endpoint.failed, made - endpoint.made);
        endpoint.p = (others.1 > 0).then(|| stats::fisher((endpoint.failed, endpoint.made), others));
    }
}

/// `1 of 3 endpoints refuses always: 10.244.2.9:8080 (pod shop/web-2 on n2), p = 0.0020`; none where all do alike.
pub fn sentence(endpoints: &[EndpointCount]) -> Option<String> {
    let failing: Vec<&EndpointCount> = endpoints.iter().filter(|endpoint| endpoint.failed > 0).collect();
    if failing.is_empty()
        || failing.len() == endpoints.len() && failing.iter().all(|endpoint| endpoint.failed == endpoint.made)
    {
        return None;
    }
    let differs = |endpoint: &&EndpointCount| endpoint.p.is_some_and(|p| p < UNLIKELY);
    let bad: Vec<&EndpointCount> =
        failing.iter().copied().filter(differs).filter(|endpoint| endpoint.low > 0.0).collect();
    let worse: Vec<&EndpointCount> =
        bad.into_iter().filter(|endpoint| share(endpoint) > share_of_others(endpoint, endpoints)).collect();
    if worse.is_empty() {
        let p = failing.iter().filter_map(|endpoint| endpoint.p).fold(1.0, f64::min);
        let names: Vec<String> = failing.iter().map(|endpoint| name(endpoint)).collect();
        return Some(format!(
            "attempts failed at {} of {} endpoints ({}), and chance alone explains the difference between them (p = {p:.4}); \
             more attempts (-c) would tell",
            failing.len(),
            endpoints.len(),
            names.join(", ")
        ));
    }
    let always = worse.iter().all(|endpoint| endpoint.failed == endpoint.made);
    let said: Vec<String> = worse
        .iter()
        .map(|endpoint| {
            format!("{} {} of {}, p = {:.4}", name(endpoint), endpoint.failed, endpoint.made, endpoint.p.unwrap_or(1.0))
        })
        .collect();
    let verb = verb(&worse);
    let how_often = if always { "always" } else { "more often than the others" };
    Some(format!("{} of {} endpoints {verb} {how_often}: {}", worse.len(), endpoints.len(), said.join("; ")))
}

/// `refuses`, `do not answer`.
fn verb(endpoints: &[&EndpointCount]) -> &'static str {
    let mut classes = endpoints.iter().flat_map(|endpoint| endpoint.failures.keys());
    let first = classes.next().map(String::as_str);
    let class = first.filter(|first| classes.all(|class| class == first));
    match (class, endpoints.len()) {
        (Some("refused"), 1) => "refuses",
        (Some("refused"), _) => "refuse",
        (Some("silence"), 1) => "does not answer",
        (Some("silence"), _) => "do not answer",
        (_, 1) => "fails",
        (_, _) => "fail",
    }
}

fn name(endpoint: &EndpointCount) -> String {
    match endpoint.object.as_str() {
        "" => endpoint.endpoint.clone(),
        object => format!("{} ({object})", endpoint.endpoint),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of attempts are far below 2^52")]
fn share(endpoint: &EndpointCount) -> f64 {
    endpoint.failed as f64 / endpoint.made.max(1) as f64
}

fn share_of_others(one: &EndpointCount, all: &[EndpointCount]) -> f64 {
    let others = all.iter().filter(|other| other.endpoint != one.endpoint);
    let (failed, made) = others.fold((0, 0), |(failed, made), other| (failed + other.failed, made + other.made));
    share(&EndpointCount { made, failed, ..EndpointCount::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, made: u64, failed: u64) -> EndpointCount {
        let failures = (failed > 0).then(|| ("refused".to_owned(), failed)).into_iter().collect();
        EndpointCount { endpoint: address.to_owned(), made, failed, failures, ..EndpointCount::default() }
    }

    fn said(mut endpoints: Vec<EndpointCount>) -> Option<String> {
        judge(&mut endpoints);
        sentence(&endpoints)
    }

    #[test]
    fn one_that_always_refuses_is_named_with_its_chance() {
        let found =
            said(vec![endpoint("a:1", 5, 0), endpoint("b:1", 4, 4), endpoint("c:1", 3, 0)]).expect("a sentence");
        assert_eq!(found, "1 of 3 endpoints refuses always: b:1 4 of 4, p = 0.0020");
    }

    #[test]
    fn chance_is_called_chance() {
        let found = said(vec![endpoint("a:1", 1, 1), endpoint("b:1", 2, 0)]).expect("a sentence");
        assert!(found.contains("chance alone") && found.contains("0.3333"), "{found}");
    }

    #[test]
    fn alike_is_not_worth_a_sentence() {
        assert_eq!(said(vec![endpoint("a:1", 3, 0), endpoint("b:1", 2, 0)]), None);
        assert_eq!(said(vec![endpoint("a:1", 3, 3), endpoint("b:1", 2, 2)]), None);
    }

    #[test]
    fn an_endpoint_that_is_better_than_the_rest_is_not_the_bad_one() {
        let found =
            said(vec![endpoint("a:1", 20, 1), endpoint("b:1", 20, 20), endpoint("c:1", 20, 20)]).expect("a sentence");
        assert!(found.starts_with("2 of 3 endpoints refuse always: b:1"), "{found}");
    }
}
