//! One endpoint in a manifest that the user may have edited: its lines become comments, and lines again; all else stays
//! as it is.

use std::net::IpAddr;

use lb_tests::lab::Addresses;

/// Whether a manifest has an endpoint in force; `None` where no line is about that endpoint alone.
pub(crate) fn is_in_force(text: &str, addresses: Addresses) -> Option<bool> {
    let mut states = text.lines().filter_map(|line| state(line, addresses)).peekable();
    states.peek()?;
    Some(states.any(|is_in_force| is_in_force))
}

/// The manifest without the endpoint if it has it, else with it again; `None` where no line is about that endpoint alone.
pub(crate) fn toggled(text: &str, addresses: Addresses) -> Option<String> {
    let was_in_force = is_in_force(text, addresses)?;
    let changed = |line: &str| match (state(line, addresses), line.split_once('#')) {
        (Some(true), _) if was_in_force => format!("# {line}"),
        (Some(false), Some((indent, rest))) if !was_in_force => {
            format!("{indent}{}", rest.strip_prefix(' ').unwrap_or(rest))
        }
        _ => line.to_owned(),
    };
    Some(text.split_inclusive('\n').map(changed).collect())
}

/// Whether a line puts the endpoint in force or is a comment that would; `None` for every other line. Only an element of a
/// list that begins and ends on the line is such a line, as the lab writes them: to take one out of several that are an
/// endpoint together would leave what is no manifest.
fn state(line: &str, addresses: Addresses) -> Option<bool> {
    let comment = line.trim_start().strip_prefix('#');
    let element = comment.unwrap_or(line).trim();
    let count = |brace| element.matches(brace).count();
    let is_whole = element.starts_with("- {") && count('{') == count('}');
    let mut words = element.split(|c: char| !(c.is_ascii_hexdigit() || ".:".contains(c)));
    let own = [IpAddr::from(addresses.v4), IpAddr::from(addresses.v6)];
    let is_own = words.any(|word| word.parse().is_ok_and(|address| own.contains(&address)));
    (is_whole && is_own).then_some(comment.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDITED: &str = "\
ports:
- {port: 88} # by hand
endpoints:
- {addresses: [\"10.1.2.1\"], nodeName: node2, conditions: {ready: true}}
- {addresses: [\"10.1.2.2\"], nodeName: node2, conditions: {ready: true}} # mine
---
endpoints:
  - {addresses: ['fd00:10:1:2::2'], conditions: {ready: false}}
- {addresses: [\"fd00:10:1:2::22\"]}";

    fn pod() -> Addresses {
        Addresses { v4: [10, 1, 2, 2].into(), v6: "fd00:10:1:2::2".parse().expect("an address") }
    }

    #[test]
    fn only_the_lines_of_the_endpoint_change_and_come_back_as_they_were() {
        let without = toggled(EDITED, pod()).expect("it is there");
        let changed: Vec<(&str, &str)> = EDITED.lines().zip(without.lines()).filter(|(old, new)| old != new).collect();
        assert_eq!(changed.len(), 2, "{without}");
        assert!(changed.iter().all(|(old, new)| *new == format!("# {old}")), "{without}");
        assert_eq!((is_in_force(EDITED, pod()), is_in_force(&without, pod())), (Some(true), Some(false)));
        assert_eq!(toggled(&without, pod()).as_deref(), Some(EDITED));
    }

    #[test]
    fn an_endpoint_that_is_partly_a_comment_is_taken_away_first() {
        let half = "#- {addresses: [10.1.2.2]}\n- {addresses: [\"fd00:10:1:2::2\"]}\n";
        let without = toggled(half, pod()).expect("it is there");
        assert_eq!(without, "#- {addresses: [10.1.2.2]}\n# - {addresses: [\"fd00:10:1:2::2\"]}\n");
        assert_eq!(
            toggled(&without, pod()).as_deref(),
            Some("- {addresses: [10.1.2.2]}\n- {addresses: [\"fd00:10:1:2::2\"]}\n")
        );
    }

    #[test]
    fn an_endpoint_of_several_lines_is_left_alone() {
        for text in
            ["- addresses:\n  - 10.1.2.2\n", "- {addresses: [10.1.2.2],\n  nodeName: node2}\n", "", "# 10.1.2.2\n"]
        {
            assert_eq!(toggled(text, pod()), None, "{text}");
        }
    }
}
