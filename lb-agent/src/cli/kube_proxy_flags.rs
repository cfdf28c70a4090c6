//! The flags of kube-proxy, from the table of its fields.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use lb_agent::configuration::{FIELDS, Flag, Kind, Treatment};

/// The flags that were given. Their values are read together with the file's.
#[derive(Debug)]
pub(super) struct KubeProxyFlags {
    pub(super) given: Vec<Flag>,
}

fn arguments() -> impl Iterator<Item = Arg> {
    let with_flag = FIELDS.iter().enumerate().filter_map(|(index, field)| Some((index, field, field.flag?)));
    // One flag may be two fields.
    let first = with_flag.filter(|(index, _, flag)| FIELDS[..*index].iter().all(|other| other.flag != Some(flag)));
    first.map(|(_, field, flag)| {
        let ignored = field.treatment == Treatment::Ignored;
        let help = if ignored { format!("Ignored: {}", field.why) } else { format!("{}: {}", field.path, field.why) };
        let heading = if ignored { "Flags of kube-proxy that do nothing here" } else { "Flags of kube-proxy" };
        let (name, several) = match field.kind {
            Kind::Bool => ("BOOL", false),
            Kind::Integer | Kind::Number => ("N", false),
            Kind::Duration => ("DURATION", false),
            Kind::Cidrs => ("LIST", true),
            Kind::Gates => ("NAME=BOOL", true),
            Kind::Modules => ("PATTERN=N", true),
            Kind::Quantity => ("BYTES", false),
            Kind::Text => ("TEXT", false),
        };
        let argument = Arg::new(flag).long(flag).value_name(name).help(help.replace('`', "")).help_heading(heading);
        let argument = if flag.len() == 1 { argument.short(flag.chars().next()) } else { argument };
        let argument = argument.hide_short_help(ignored).allow_negative_numbers(true);
        let argument = if several {
            argument.action(ArgAction::Append)
        } else {
            argument.action(ArgAction::Set).overrides_with(flag)
        };
        match field.kind {
            Kind::Bool => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => argument,
        }
    })
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        command.args(arguments())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given: Vec<Flag> = Vec::new();
        for name in FIELDS.iter().filter_map(|field| field.flag) {
            let values = matches.get_many::<String>(name).map(|values| values.cloned().collect());
            if let Some(values) = values.filter(|_| given.iter().all(|flag| flag.name != name)) {
                given.push(Flag { name, values });
            }
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
