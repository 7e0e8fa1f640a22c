//! What shells and manuals want to know: completions and man pages, both made from the arguments themselves.

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::files::Files;
use super::{Failure, put_bytes};

pub fn completions(a: &CompletionsArgs) -> Result<bool, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "fqvit-opt", &mut text);
    if a.shell == clap_complete::Shell::Bash {
        text = named_alike(&String::from_utf8(text)?).into_bytes();
    }
    put_bytes(&text, true);
    Ok(true)
}

/// clap_complete 4.6 takes the hyphen of the program's name for the end of a command where it tells commands apart, and not where
/// it finds out which one is typed.
fn named_alike(script: &str) -> String {
    script.replace("fqvit__subcmd__opt", "fqvit__opt")
}

pub fn man(a: &ManArgs) -> Result<bool, Failure> {
    let mut cmd = Cli::command();
    cmd.build();
    let page = |c: &clap::Command| -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        clap_mangen::Man::new(c.clone()).render(&mut text)?;
        Ok(text)
    };
    let Some(dir) = &a.dir else {
        let of = match &a.command {
            None => &cmd,
            Some(name) => cmd.find_subcommand(name).ok_or_else(|| {
                let known: Vec<&str> =
                    cmd.get_subcommands().filter(|c| !c.is_hide_set()).map(clap::Command::get_name).collect();
                format!("there is no command {name:?}; there are {}", known.join(", "))
            })?,
        };
        put_bytes(&page(of)?, true);
        return Ok(true);
    };
    let mut files = Files::default();
    files.writes_into("--dir", dir);
    let subcommands = cmd.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set());
    let mut pages = Vec::new();
    for c in std::iter::once(&cmd).chain(subcommands) {
        let path = dir.join(format!("{}.1", c.get_display_name().unwrap_or_else(|| c.get_name())));
        files.writes("--dir", &path)?;
        pages.push((path, page(c)?));
    }
    files.check()?;
    pages.iter().try_for_each(|(path, page)| files.write(path, page))?;
    files.commit()?;
    Ok(true)
}
