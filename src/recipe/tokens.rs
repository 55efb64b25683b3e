//! `tokenizer_source`, `tokenizer` and `chat_template`: which vocabulary the output has.

use super::reader::{Reader, text};
use super::scalar::{self, Number};
use super::yaml::{Data, Entry, Node, quote};
use super::{ModelRef, models};
use crate::error::Result;

/// Most tokens that a recipe may name one by one.
const MOST_TOKENS: usize = 10_000;
/// Largest multiple to which a vocabulary is padded.
const MOST_PADDING: i64 = 1 << 20;
/// A template's text is at least so long: what is shorter is a misspelt name.
const SHORTEST_TEMPLATE: usize = 20;

/// The vocabulary of the output.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// The line of its key.
    pub line: usize,
    /// Whose it is.
    pub source: TokenizerSource,
    /// What is said of single tokens.
    pub tokens: Vec<TokenRule>,
    /// The number of rows is rounded up to a multiple of this.
    pub pad_to_multiple_of: u64,
}

/// Whose vocabulary the output has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base's with what the others have besides.
    Union,
    /// The base's; without one the first model's.
    Base,
    /// This model's.
    Model(ModelRef),
}

/// What is said of one token.
#[derive(Debug, Clone)]
pub struct TokenRule {
    /// The token.
    pub token: String,
    /// Its line.
    pub line: usize,
    /// Where its row comes from.
    pub source: Option<TokenFrom>,
    /// Whether models that have the token take that row too.
    pub force: bool,
}

/// Where the row of a token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenFrom {
    /// Zeros.
    Zero,
    /// The row that this model has for the token.
    Model(ModelRef),
    /// The row that this model has for another token, by its text or its number.
    Token(ModelRef, Token),
}

/// A token of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// By its text.
    Text(String),
    /// By its number.
    Id(u32),
}

/// The chat template of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatTemplate {
    /// The one that most of the models have.
    Auto,
    /// One that merganser knows by name, or the recipe's own text.
    Text(String),
}

/// Every model that is named there.
pub(super) fn references_mut(tokenizer: &mut Tokenizer) -> impl Iterator<Item = &mut ModelRef> {
    let source = match &mut tokenizer.source {
        TokenizerSource::Model(model) => Some(model),
        TokenizerSource::Union | TokenizerSource::Base => None,
    };
    let rules = tokenizer.tokens.iter_mut().filter_map(|rule| match &mut rule.source {
        Some(TokenFrom::Model(model) | TokenFrom::Token(model, _)) => Some(model),
        Some(TokenFrom::Zero) | None => None,
    });
    source.into_iter().chain(rules)
}

/// Reads `tokenizer_source` or `tokenizer`.
pub(super) fn read(reader: &Reader, simple: Option<&Entry>, full: Option<&Entry>) -> Result<Option<Tokenizer>> {
    if let (Some(first), Some(second)) = (simple, full) {
        let line = first.line.max(second.line);
        return Err(reader.error(line, "a recipe has `tokenizer_source` or `tokenizer`, not both"));
    }
    if let Some(entry) = simple {
        let source = source(reader, &entry.value, "tokenizer_source")?;
        return Ok(Some(Tokenizer { line: entry.line, source, tokens: Vec::new(), pad_to_multiple_of: 1 }));
    }
    let Some(entry) = full else { return Ok(None) };
    let mut tokenizer =
        Tokenizer { line: entry.line, source: TokenizerSource::Union, tokens: Vec::new(), pad_to_multiple_of: 1 };
    for entry in reader.map(&entry.value, "`tokenizer`")?.iter().filter(|entry| !entry.value.is_null()) {
        match entry.key.as_str() {
            "source" => tokenizer.source = source(reader, &entry.value, "source")?,
            "tokens" => tokenizer.tokens = tokens(reader, entry)?,
            "pad_to_multiple_of" => {
                let multiple = whole(&entry.value).filter(|n| (1..=MOST_PADDING).contains(n));
                tokenizer.pad_to_multiple_of = multiple.map(|n| n as u64).ok_or_else(|| {
                    let found = entry.value.describe();
                    let range = format!("[1, {MOST_PADDING}]");
                    reader.error(
                        entry.value.line,
                        format_args!("`pad_to_multiple_of` must be a whole number in {range}, found {found}"),
                    )
                })?;
            }
            key => {
                let message = format!("unknown key {} in `tokenizer`", quote(key));
                return Err(reader.unknown_key(entry.line, message, key, &["source", "tokens", "pad_to_multiple_of"]));
            }
        }
    }
    Ok(Some(tokenizer))
}

fn source(reader: &Reader, node: &Node, key: &str) -> Result<TokenizerSource> {
    match &node.data {
        Data::Scalar { text, .. } if text == "union" => Ok(TokenizerSource::Union),
        Data::Scalar { text, .. } if text == "base" => Ok(TokenizerSource::Base),
        // The spelling of mergekit's earlier releases.
        Data::Scalar { text, .. } if text.starts_with("model:") => {
            Ok(TokenizerSource::Model(models::read_name(reader, &text["model:".len()..], node.line, key)?.0))
        }
        _ => Ok(TokenizerSource::Model(models::read(reader, node, key)?.0)),
    }
}

fn tokens(reader: &Reader, at: &Entry) -> Result<Vec<TokenRule>> {
    let entries = reader.map(&at.value, "`tokens`")?;
    if entries.len() > MOST_TOKENS {
        return Err(reader.error(at.line, format_args!("{} tokens are more than {MOST_TOKENS}", entries.len())));
    }
    let rule = |entry: &Entry| {
        let mut rule = TokenRule { token: entry.key.clone(), line: entry.line, source: None, force: false };
        let what = format!("the token {}", quote(&entry.key));
        for entry in reader.map(&entry.value, &what)?.iter().filter(|entry| !entry.value.is_null()) {
            match entry.key.as_str() {
                "source" => rule.source = Some(token_from(reader, entry)?),
                "force" => rule.force = truth(reader, entry)?,
                key => {
                    let message = format!("unknown key {} in {what}", quote(key));
                    return Err(reader.unknown_key(entry.line, message, key, &["source", "force"]));
                }
            }
        }
        if rule.force && rule.source.is_none() {
            return Err(reader.error(entry.line, format_args!("{what} has `force: true` and no `source`")));
        }
        Ok(rule)
    };
    Ok(entries.iter().filter_map(|entry| reader.keep(rule(entry))).collect())
}

fn token_from(reader: &Reader, at: &Entry) -> Result<TokenFrom> {
    let Data::Map(entries) = &at.value.data else {
        return Ok(TokenFrom::Model(models::read(reader, &at.value, "source")?.0));
    };
    let (mut kind, mut model, mut token) = (None, None, None);
    for entry in entries.iter().filter(|entry| !entry.value.is_null()) {
        match entry.key.as_str() {
            "kind" => kind = text(reader, entry)?,
            "model" => model = Some(models::read(reader, &entry.value, "model")?.0),
            "token" => token = text(reader, entry)?.map(Token::Text),
            "token_id" => {
                let id = whole(&entry.value).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    let found = entry.value.describe();
                    reader.error(
                        entry.value.line,
                        format_args!("`token_id` must be the number of a token, found {found}"),
                    )
                })?;
                token = Some(Token::Id(id));
            }
            key => {
                let message = format!("unknown key {} in the `source` of a token", quote(key));
                return Err(reader.unknown_key(entry.line, message, key, &["kind", "model", "token", "token_id"]));
            }
        }
    }
    match (kind.as_deref(), model, token) {
        (Some("zero"), None, None) => Ok(TokenFrom::Zero),
        (Some("model_token"), Some(model), Some(token)) => Ok(TokenFrom::Token(model, token)),
        _ => Err(reader
            .error(at.line, "the `source` of a token is no model, `{kind: zero}` or `{kind: model_token, …}`")
            .hint("write a model, `{kind: zero}`, or `{kind: model_token, model: …, token: …}`")),
    }
}

/// Reads `chat_template`.
pub(super) fn chat_template(reader: &Reader, at: &Entry) -> Result<Option<ChatTemplate>> {
    let Some(written) = text(reader, at)? else { return Ok(None) };
    if written == "auto" {
        return Ok(Some(ChatTemplate::Auto));
    }
    if let Some(known) = crate::tokenizer::templates::named(&written) {
        return Ok(Some(ChatTemplate::Text(known.to_owned())));
    }
    if written.chars().count() >= SHORTEST_TEMPLATE && written.contains('{') {
        return Ok(Some(ChatTemplate::Text(written)));
    }
    let names = crate::tokenizer::templates::NAMES.iter().map(|(name, _)| *name);
    let names = super::reader::list_of_names(names.chain(["auto"]), "or");
    Err(reader
        .error(
            at.value.line,
            format_args!("`chat_template` is neither a known name nor a template: {}", quote(&written)),
        )
        .hint(format!("write {names}, or the template's text")))
}

fn whole(node: &Node) -> Option<i64> {
    match &node.data {
        Data::Scalar { text, .. } => match scalar::number(text) {
            Ok(Number::Int(number)) => Some(number),
            _ => None,
        },
        _ => None,
    }
}

fn truth(reader: &Reader, entry: &Entry) -> Result<bool> {
    let found = || entry.value.describe();
    let Data::Scalar { text, .. } = &entry.value.data else {
        return Err(
            reader.error(entry.value.line, format_args!("`{}` must be true or false, found {}", entry.key, found()))
        );
    };
    scalar::boolean(text).ok_or_else(|| {
        reader.error(entry.value.line, format_args!("`{}` must be true or false, found {}", entry.key, found()))
    })
}
