//! Reads the assignments of a shell file without being a shell: nothing is expanded and nothing is run.

use std::iter::Peekable;
use std::str::Chars;

/// What was assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `NAME=word`
    Word(String),
    /// `NAME=(word word)`
    Array(Vec<String>),
}

/// `NAME=value` on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) name: String,
    /// The value, or why it cannot be known.
    pub(super) value: Result<Value, &'static str>,
    pub(super) line: usize,
}

const EXPANSION: &str = "has a shell expansion ($ or `), and nothing is executed here; write the value out";
const UNCLOSED: &str = "has a quote or parenthesis that is not closed";
const OPERATOR: &str = "has a character in its array that must be quoted";
const APPENDS: &str = "is appended to with +=; write the whole value at once";

/// Anything else on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) line: usize,
    /// From where it is not understood to the end of the line.
    pub(super) text: String,
}

/// The assignments of `text` in order, and what else there is.
pub(super) fn parse(text: &str) -> (Vec<Assignment>, Vec<Other>) {
    let mut reader = Reader { rest: text.chars().peekable(), line: 1 };
    let (mut assignments, mut other) = (Vec::new(), Vec::new());
    while reader.next_statement() {
        let line = reader.line;
        let start = reader.rest.clone();
        match reader.assignment(line) {
            Some(assignment) => {
                if assignment.value.is_err() {
                    reader.skip_line();
                }
                assignments.push(assignment);
            }
            None => {
                reader.skip_line();
                other.push(Other { line, text: start.take_while(|c| *c != '\n').collect() });
            }
        }
    }
    (assignments, other)
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

impl Reader<'_> {
    fn take(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.rest.next_if(|c| wanted(*c)) {
            self.line += usize::from(c == '\n');
            taken.push(c);
        }
        taken
    }

    fn skip_line(&mut self) {
        self.take_while(|c| c != '\n');
    }

    /// Goes to the next statement: over white space, separators and comments. False at the end.
    fn next_statement(&mut self) -> bool {
        loop {
            self.take_while(|c| c.is_whitespace() || c == ';');
            match self.rest.peek() {
                Some('#') => self.skip_line(),
                Some(_) => return true,
                None => return false,
            }
        }
    }

    fn assignment(&mut self, line: usize) -> Option<Assignment> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut name = self.take_while(is_name);
        if name == "export" {
            self.take_while(|c| c == ' ' || c == '\t');
            name = self.take_while(is_name);
        }
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let append = self.rest.next_if_eq(&'+').is_some();
        self.rest.next_if_eq(&'=')?;
        let value = if append { Err(APPENDS) } else { self.value() };
        Some(Assignment { name, value, line })
    }

    fn value(&mut self) -> Result<Value, &'static str> {
        if self.rest.next_if_eq(&'(').is_none() {
            return self.word().map(Value::Word);
        }
        let mut words = Vec::new();
        loop {
            self.take_while(char::is_whitespace);
            match self.rest.peek() {
                Some(')') => {
                    self.take();
                    return Ok(Value::Array(words));
                }
                Some('#') => self.skip_line(),
                Some(';' | '(' | '&' | '|' | '<' | '>') => return Err(OPERATOR),
                Some(_) => words.push(self.word()?),
                None => return Err(UNCLOSED),
            }
        }
    }

    /// A word, up to white space or what else ends one; quotes are removed.
    fn word(&mut self) -> Result<String, &'static str> {
        let mut word = String::new();
        while let Some(&c) = self.rest.peek() {
            match c {
                '$' | '`' => return Err(EXPANSION),
                '\'' => {
                    self.take();
                    word.push_str(&self.take_while(|c| c != '\''));
                    self.take().ok_or(UNCLOSED)?;
                }
                '"' => {
                    self.take();
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.take();
                    word.extend(self.take().filter(|c| *c != '\n'));
                }
                ';' | ')' | '(' | '&' | '|' | '<' | '>' => break,
                c if c.is_whitespace() => break,
                c => {
                    self.take();
                    word.push(c);
                }
            }
        }
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut String) -> Result<(), &'static str> {
        loop {
            match self.take().ok_or(UNCLOSED)? {
                '"' => return Ok(()),
                '$' | '`' => return Err(EXPANSION),
                '\\' => match self.take().ok_or(UNCLOSED)? {
                    '\n' => {}
                    escaped @ ('$' | '`' | '"' | '\\') => word.push(escaped),
                    other => word.extend(['\\', other]),
                },
                c => word.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, Value)> {
        let (assignments, other) = parse(text);
        assert_eq!(other, [], "{text}");
        assignments.into_iter().map(|a| (a.name, a.value.unwrap())).collect()
    }

    fn word(text: &str) -> Value {
        Value::Word(text.to_owned())
    }

    #[test]
    fn words_and_quotes() {
        for (text, value) in [
            ("A=", ""),
            ("A=1,2", "1,2"),
            ("A=1 # note", "1"),
            ("A=1#2", "1#2"),
            ("  export A='a b'\"c d\"e", "a bc de"),
            ("A=\"a \\\"b\\\" \\$c \\d\"", "a \"b\" $c \\d"),
            ("A=a\\ b", "a b"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("A=x;", "x"),
            ("A=ipc:///var/run/x\r\n", "ipc:///var/run/x"),
        ] {
            assert_eq!(values(text), [("A".to_owned(), word(value))], "{text}");
        }
    }

    #[test]
    fn arrays_over_several_lines() {
        let text = "A=(0000:05:08.1=1 '0000:05:08.2=2'\n  # comment\n  0000:05:08.3=3)\nB=()\n";
        let array = |words: &[&str]| Value::Array(words.iter().map(|w| (*w).to_owned()).collect());
        let expected = [
            ("A".to_owned(), array(&["0000:05:08.1=1", "0000:05:08.2=2", "0000:05:08.3=3"])),
            ("B".to_owned(), array(&[])),
        ];
        assert_eq!(values(text), expected);
        assert_eq!(parse(text).0[1].line, 4);
    }

    #[test]
    fn several_assignments_on_a_line() {
        assert_eq!(
            values("A=1 B=2; C=3"),
            [("A".to_owned(), word("1")), ("B".to_owned(), word("2")), ("C".to_owned(), word("3"))]
        );
    }

    #[test]
    fn nothing_is_executed() {
        let text = "A=$(touch /tmp/x) more\nB=`id`\nC=\"$HOME\"\nD=$HOME/x\nE=1\nF+=2\n";
        let (assignments, other) = parse(text);
        let failed: Vec<_> =
            assignments.iter().filter(|a| a.value.is_err()).map(|a| a.name.as_str()).collect();
        assert_eq!(failed, ["A", "B", "C", "D", "F"]);
        assert_eq!(assignments[4].line, 5);
        assert_eq!(other, []);
    }

    #[test]
    fn commands_are_told_by_their_lines() {
        let (assignments, other) = parse("#!/bin/sh\nif true; then\n  A=1\nfi\nrm -rf /\nshift\nB=2\n");
        assert_eq!(other.iter().map(|other| other.line).collect::<Vec<_>>(), [2, 4, 5, 6]);
        assert_eq!(other[2].text, "rm -rf /");
        let names: Vec<_> = assignments.iter().map(|a| (a.name.as_str(), a.line)).collect();
        assert_eq!(names, [("A", 3), ("B", 7)]);
    }

    #[test]
    fn open_ends_are_errors_and_do_not_hang() {
        for text in ["A='x", "A=\"x", "A=(x", "A=(x 'y", "A=\"x\\"] {
            assert_eq!(parse(text).0[0].value, Err(UNCLOSED), "{text}");
        }
        for text in ["(", ")", "=", "A", "é", "A=(a(b)", "&&", "A=1)"] {
            parse(text);
        }
    }

    /// Every text of up to six of the characters that mean something: each ends, without a panic.
    #[test]
    fn no_text_hangs_the_reader() {
        const MEANINGFUL: &[u8] = b"A=(')\"\\$# \n";
        let mut text = Vec::new();
        for length in 0..=6_u32 {
            for number in 0..MEANINGFUL.len().pow(length) {
                text.clear();
                let mut rest = number;
                for _ in 0..length {
                    text.push(MEANINGFUL[rest % MEANINGFUL.len()]);
                    rest /= MEANINGFUL.len();
                }
                let text = std::str::from_utf8(&text).unwrap();
                let (assignments, other) = parse(text);
                assert!(assignments.len() + other.len() <= text.len(), "{text:?}");
            }
        }
    }
}
