//! `--name value` pairs. The callers are our own tests: small and strict is enough.

use crate::Result;

pub struct Options(Vec<(String, String)>);

impl Options {
    pub fn parse(arguments: &[String]) -> Result<Options> {
        let mut pairs = Vec::new();
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} has no value", pair[0]));
            };
            let name = name
                .strip_prefix("--")
                .ok_or_else(|| format!("{name} is not an option"))?;
            pairs.push((name.to_owned(), value.clone()));
        }
        Ok(Options(pairs))
    }

    pub fn number(&self, name: &str) -> Result<u64> {
        number(name, self.text(name)?)
    }

    /// `None` when it was left out.
    pub fn optional(&self, name: &str) -> Result<Option<u64>> {
        let given = self.0.iter().any(|(key, _)| key == name);
        given.then(|| self.number(name)).transpose()
    }

    pub fn numbers(&self, name: &str) -> Result<Vec<u64>> {
        self.text(name)?
            .split(',')
            .map(|part| number(name, part))
            .collect()
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| format!("--{name} is missing"))
    }
}

fn number(name: &str, text: &str) -> Result<u64> {
    text.parse()
        .map_err(|_| format!("--{name} {text}: not a number"))
}
