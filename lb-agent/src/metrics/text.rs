//! The two texts that Prometheus reads: `OpenMetrics`, which the registry writes, and its own older one, which kube-proxy
//! answers with unless it is asked for the former.

/// Content type of `OpenMetrics`.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older text.
pub(super) const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Turns `OpenMetrics` into the older text: a counter is called there as its one number is, and nothing ends it.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help: Option<&str> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take().and_then(|rest| rest.split_once(' ')) {
                text.extend(["# HELP ", name, total, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, total, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_text_names_counters_by_their_number() {
        let open = "# HELP a Counted things.\n# TYPE a counter\na_total{b=\"# c\"} 1\n\
                    # HELP d_total A gauge of a bad name.\n# TYPE d_total gauge\nd_total 2\n# EOF\n";
        let expected = "# HELP a_total Counted things.\n# TYPE a_total counter\na_total{b=\"# c\"} 1\n\
                        # HELP d_total A gauge of a bad name.\n# TYPE d_total gauge\nd_total 2\n";
        assert_eq!(classic(open), expected);
    }
}
