//! That what `deploy/monitoring` asks for is there: every query, against what a running agent shows.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{AggregateExpr, BinModifier, BinaryExpr, Expr, LabelModifier, MatrixSelector, VectorSelector, parse},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;

use crate::{
    agent::{Agent, get, healthy, make_uplink_to, until, write_manifest},
    sandbox::{self, Elsewhere},
};

const ALERTS: &str = include_str!("../../../deploy/monitoring/alerts.yaml");
const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");

/// Labels that Prometheus gives to what it scrapes.
const OF_TARGETS: [&str; 2] = ["job", "instance"];
/// What it makes itself of each scrape.
const OF_PROMETHEUS: &str = "up";

/// What a scrape shows: by name, the labels of each series.
#[derive(Debug, Default)]
struct Scrape(BTreeMap<String, Vec<BTreeMap<String, String>>>);

impl Scrape {
    fn add(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (series, _) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
            let labels = split(labels).into_iter().map(|label| {
                let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{line}"));
                (name.to_owned(), value.trim_matches('"').to_owned())
            });
            self.0.entry(name.to_owned()).or_default().push(labels.collect());
        }
    }
}

/// Splits at commas that are not in quotes.
fn split(list: &str) -> Vec<&str> {
    let mut quoted = false;
    let pieces = list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    pieces.map(str::trim).filter(|piece| !piece.is_empty()).collect()
}

/// What a query asks for.
#[derive(Debug, Default)]
struct Query {
    selectors: Vec<VectorSelector>,
    /// Labels by which is grouped or matched.
    groupings: BTreeSet<String>,
    /// Whether something is grouped: its result has no other labels.
    is_grouped: bool,
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        walk_expr(&mut query, &parse(text)?)?;
        Ok(query)
    }
}

impl ExprVisitor for Query {
    type Error = String;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, String> {
        match expression {
            Expr::VectorSelector(selector) | Expr::MatrixSelector(MatrixSelector { vs: selector, .. }) => {
                self.selectors.push(selector.clone());
            }
            Expr::Aggregate(AggregateExpr { modifier: Some(modifier), .. }) => {
                self.groupings.extend(modifier.labels().labels.iter().cloned());
                self.is_grouped |= modifier.is_include();
            }
            Expr::Binary(BinaryExpr { modifier: Some(BinModifier { matching, card, .. }), .. }) => {
                let matching = matching.iter().map(LabelModifier::labels);
                self.groupings.extend(matching.chain(card.labels()).flat_map(|labels| labels.labels.clone()));
            }
            _ => {}
        }
        Ok(true)
    }
}

impl Query {
    /// Labels that its result may have: those by which is grouped, where it is, else those of the series.
    fn result_labels<'b>(&'b self, scrape: &'b Scrape) -> BTreeSet<&'b str> {
        if !self.is_grouped {
            let series = self.selectors.iter().filter_map(|selector| scrape.0.get(selector.name.as_ref()?)).flatten();
            return series.flat_map(BTreeMap::keys).map(String::as_str).chain(OF_TARGETS).collect();
        }
        self.groupings.iter().map(String::as_str).collect()
    }

    /// What of it a scrape does not show.
    fn missing(&self, scrape: &Scrape) -> Vec<String> {
        let mut missing = Vec::new();
        let mut labels: BTreeSet<&str> = OF_TARGETS.into();
        for VectorSelector { name, matchers, .. } in &self.selectors {
            let name = name.as_deref().unwrap_or_else(|| panic!("no name: {matchers}"));
            let of_series = matchers.matchers.iter().filter(|matcher| !OF_TARGETS.contains(&matcher.name.as_str()));
            if name == OF_PROMETHEUS {
                missing.extend(of_series.map(|matcher| format!("{name}{{{matcher}}}")));
                continue;
            }
            let Some(series) = scrape.0.get(name) else {
                missing.push(name.to_owned());
                continue;
            };
            labels.extend(series.iter().flat_map(BTreeMap::keys).map(String::as_str));
            for Matcher { op, name: label, value } in of_series {
                let is_shown = |value: &str| series.iter().any(|labels| labels.get(label).is_some_and(|v| v == value));
                let values: Vec<&str> = match op {
                    MatchOp::Equal => vec![value],
                    // Of regular expressions only lists of words.
                    MatchOp::Re(_) => value.split('|').collect(),
                    // What is left out need not be there, but others must be.
                    MatchOp::NotEqual => {
                        let is_other =
                            |labels: &BTreeMap<String, String>| labels.get(label).is_some_and(|v| v != value);
                        if !series.iter().any(is_other) {
                            missing.push(format!("{name}{{{label}!=\"{value}\"}}"));
                        }
                        continue;
                    }
                    MatchOp::NotRe(_) => panic!("{name} {label} {op}"),
                };
                let unknown = values.into_iter().filter(|value| !is_shown(value));
                missing.extend(unknown.map(|value| format!("{name}{{{label}=\"{value}\"}}")));
            }
        }
        let unknown = self.groupings.iter().filter(|label| !labels.contains(label.as_str()));
        missing.extend(unknown.map(|label| format!("label {label}")));
        missing
    }
}

/// Expressions of the alerts, by name, with the texts beside them.
fn alerts() -> Vec<(String, String, Value)> {
    let rules: Value = serde_saphyr::from_str(ALERTS).expect("YAML");
    let groups = rules["groups"].as_array().expect("groups");
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone());
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
    rules.map(|rule| (text(&rule["alert"]), text(&rule["expr"]), rule)).collect()
}

/// Queries of the dashboard, with the titles of their panels and their legends.
fn panels() -> Vec<(String, String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
    let targets = |panel: &Value| panel["targets"].as_array().cloned().unwrap_or_default();
    let of_panel = |panel: &Value| {
        let title = text(&panel["title"]);
        let targets = targets(panel).into_iter();
        targets.map(|target| (title.clone(), text(&target["expr"]), text(&target["legendFormat"]))).collect::<Vec<_>>()
    };
    panels.flat_map(of_panel).collect()
}

/// Names in `{{ … }}` that begin with `prefix`, without it.
fn placeholders<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let inside = text.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim()));
    inside.filter_map(move |inside| inside.strip_prefix(prefix)).filter_map(|rest| rest.split_whitespace().next())
}

pub(crate) fn the_reader_of_queries_finds_what_is_not_there() {
    let mut scrape = Scrape::default();
    scrape.add("# TYPE a gauge\na{b=\"x, y\",c=\"1\"} 2\na{b=\"z\",c=\"2\"} 0\nd 1.5\n");
    let missing = |text| Query::parse(text).expect("a query").missing(&scrape);
    let nothing: [String; 0] = [];
    assert_eq!(
        missing(r#"sum by (b) (rate(a{c=~"1|2",job="j"}[5m])) / d > 0.5 and on (instance) time() - d > 7"#),
        nothing
    );
    assert_eq!(missing(r#"a{b="x, y"} or absent(up{job="lb-agent"})"#), nothing);
    assert_eq!(missing(r#"sum by (e) (f) + a{b="q", c=~"1|3"}"#), ["f", r#"a{b="q"}"#, r#"a{c="3"}"#, "label e"]);
    assert_eq!(missing(r#"up{node="n"}"#).len(), 1);
    for wrong in ["sum(a", "sum(a))", "median(a)", "a{b}", "a{b=\"x\"", "rate(a[5m)", "rate(a)", "a & b"] {
        assert!(Query::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(
        placeholders("{{ $value }} of {{ $labels.map }} {{$labels.a | f}}", "$labels.").collect::<Vec<_>>(),
        ["map", "a"]
    );
}

pub(crate) fn every_query_of_alerts_and_dashboard_asks_for_what_an_agent_shows() {
    sandbox::run(|sandbox| {
        let outside = Elsewhere::new();
        make_uplink_to(&outside);
        let metrics = || {
            let answer = get("127.0.0.1:10249", "/metrics");
            answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
        };
        // A Service's counters are there once it had traffic.
        write_manifest(sandbox, &[]);
        let agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        outside.run("bash", "-c :</dev/tcp/10.0.0.1/30080");
        until(sandbox, "traffic", || metrics().contains("lb_service_flows_rejected_total{"));
        let mut scrape = Scrape::default();
        scrape.add(&metrics());
        drop(agent);
        // Those of requests once one was made, or failed.
        let _agent = Agent::start_without_api_server(sandbox);
        until(sandbox, "requests", || metrics().contains("rest_client_requests_total{"));
        scrape.add(&metrics());

        let alerts = alerts();
        let names: BTreeSet<_> = alerts.iter().map(|(name, ..)| name).collect();
        assert!(names.len() == alerts.len() && alerts.len() > 10, "each has a name of its own: {names:?}");
        for (name, expression, rule) in &alerts {
            let query = Query::parse(expression).unwrap_or_else(|error| panic!("{name}: {expression}: {error}"));
            assert_eq!(query.missing(&scrape), Vec::<String>::new(), "{name}: {expression}");
            let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
            assert!(["warning", "critical"].contains(&severity), "{name}: {severity:?}");
            for text in ["summary", "description"] {
                let text = rule["annotations"][text].as_str().unwrap_or_else(|| panic!("{name} has no {text}"));
                let known = query.result_labels(&scrape);
                let unknown: Vec<_> = placeholders(text, "$labels.").filter(|label| !known.contains(*label)).collect();
                assert!(unknown.is_empty(), "{name}: {unknown:?} in {text:?}, there are {known:?}");
            }
        }
        let panels = panels();
        assert!(panels.len() > 20, "{panels:?}");
        for (title, expression, legend) in &panels {
            let text = expression.replace("$__rate_interval", "5m");
            let query = Query::parse(&text).unwrap_or_else(|error| panic!("{title}: {expression}: {error}"));
            assert_eq!(query.missing(&scrape), Vec::<String>::new(), "{title}: {expression}");
            let known = query.result_labels(&scrape);
            let unknown: Vec<_> = placeholders(legend, "").filter(|label| !known.contains(*label)).collect();
            assert!(unknown.is_empty(), "{title}: {unknown:?} in {legend:?}, there are {known:?}");
        }
    });
}

pub(crate) fn the_dashboard_has_a_place_for_each_panel_and_asks_the_source_that_is_chosen() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().expect("variables").iter().collect();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let place = |field: &str| panel["gridPos"][field].as_u64().unwrap_or_else(|| panic!("{title}: {field}"));
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{title} at {x}, {y}");
            }
        }
        let mut references = BTreeSet::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(references.insert(target["refId"].as_str().expect("a reference")), "{title}");
            let expression = target["expr"].as_str().expect("an expression");
            let query = Query::parse(&expression.replace("$__rate_interval", "5m")).expect("a query");
            for VectorSelector { matchers, .. } in query.selectors {
                let matchers: Vec<_> = matchers.matchers.iter().map(ToString::to_string).collect();
                let of_targets = [r#"job="$job""#, r#"instance=~"$instance""#].map(str::to_owned);
                assert!(of_targets.iter().all(|matcher| matchers.contains(matcher)), "{title}: {expression}");
            }
        }
        assert!(
            panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{title}"
        );
    }
}
