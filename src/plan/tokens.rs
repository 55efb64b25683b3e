//! The output's vocabulary: its tokenizer's files, and embeddings and heads whose rows are made for it.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::{Edit, Files, config_of};
use super::outputs::Parts;
use super::towers::is_behind_layers;
use crate::checkpoint::{Checkpoint, json_in, quoted};
use crate::error::{Error, Result};
use crate::output::copy::{Content, MAX_BYTES, SmallFile, is_wanted};
use crate::recipe::{ChatTemplate, ModelRef, Recipe, Token, TokenFrom, TokenRule, Tokenizer, TokenizerSource};
use crate::source::{Held, Row, Rows};
use crate::tokenizer::{self, Vocabulary};

/// Where `tokenizer_config.json` keeps the chat template.
const SETTINGS: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// Makes embeddings and heads that fit the recipe's vocabulary, and the files of its tokenizer. Gives warnings.
pub(super) fn plan(recipe: &Recipe, parts: &mut Parts, files: &mut Files) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut settings_of = 0;
    if let Some(tokenizer) = &recipe.tokenizer {
        let merge = Merge::read(recipe, tokenizer, parts, &mut warnings)?;
        merge.files(parts, files)?;
        settings_of = merge.source.unwrap_or(0);
        merge.replace(recipe, parts)?;
    }
    if let Some(template) = &recipe.chat_template {
        template_files(template, parts, settings_of, files, &mut warnings)?;
    }
    Ok(warnings)
}

/// The row that a recipe names for a token: a source's, or zeros.
type Ruled = (Option<usize>, u32);

/// The vocabularies of a merge.
struct Merge<'a> {
    file: String,
    spec: &'a Tokenizer,
    /// Of each source.
    own: Vec<Vocabulary>,
    /// Rows of each source's embedding.
    rows: Vec<u64>,
    /// The output's.
    out: Vocabulary,
    /// Whose whole tokenizer the output has, if it is not the leader's.
    source: Option<usize>,
    /// Whether the output's differs from that of `source`.
    is_changed: bool,
    /// Rows of the output.
    size: u64,
    /// Whether the first source is the recipe's base.
    base_leads: bool,
}

impl<'a> Merge<'a> {
    fn read(recipe: &Recipe, spec: &'a Tokenizer, parts: &Parts, warnings: &mut Vec<String>) -> Result<Self> {
        let file = recipe.path.display().to_string();
        let at = |line: usize, message: String| Error::at_line(&file, line, message);
        let (mut own, mut rows) = (Vec::new(), Vec::new());
        let mut lacking = Vec::new();
        for (index, source) in parts.sources.iter().enumerate() {
            let Some(of) = embedding_rows(&source.checkpoint) else {
                let message = format!("`{}` has no embedding of tokens", source.written);
                return Err(at(spec.line, format!("{message}, and `tokenizer` is about its rows")));
            };
            let read = source.checkpoint.folder().map(Vocabulary::read).transpose()?.flatten();
            rows.push(of);
            lacking.extend(read.is_none().then_some(index));
            own.push(read);
        }
        let Some(Some(leader)) = own.first().cloned() else {
            let written = &parts.sources[0].written;
            return Err(at(
                spec.line,
                format!("`{written}` has no tokenizer, and its vocabulary is the one that leads"),
            ));
        };
        for index in lacking {
            let written = &parts.sources[index].written;
            if rows[index] != rows[0] {
                let message = format!(
                    "`{written}` has no tokenizer and {} rows, not the {} of the one that leads",
                    rows[index], rows[0]
                );
                return Err(at(spec.line, message));
            }
            warnings
                .push(format!("`{written}` has no tokenizer: that of `{}` is taken for it", parts.sources[0].written));
            own[index] = Some(leader.clone());
        }
        let mut own: Vec<Vocabulary> = own.into_iter().flatten().collect();
        for (index, (vocabulary, rows)) in own.iter_mut().zip(&rows).enumerate() {
            let cut = vocabulary.cut(*rows);
            if cut > 0 {
                let written = &parts.sources[index].written;
                warnings.push(format!(
                    "{cut} tokens of `{written}` lie beyond the {rows} rows of its embedding: they are left out"
                ));
            }
        }
        let source = match &spec.source {
            TokenizerSource::Model(model) => Some(named(parts, model).ok_or_else(|| {
                let message = format!("`{}` is none of the models that are merged", model.written);
                at(spec.line, message)
            })?),
            _ => None,
        };
        let mut out = own[source.unwrap_or(0)].clone();
        let whole = parts.sources[source.unwrap_or(0)].checkpoint.folder().map(Vocabulary::read).transpose()?.flatten();
        let mut is_changed = whole.is_some_and(|whole| whole.tokens().count() != out.tokens().count());
        if spec.source == TokenizerSource::Union {
            is_changed |= unite(&mut out, &own[1..])?;
        }
        for rule in spec.tokens.iter().filter(|rule| !rule.token.is_empty()) {
            if out.id(&rule.token).is_none() {
                out.push(&rule.token, own.iter().find(|v| v.id(&rule.token).is_some()))?;
                is_changed = true;
            }
        }
        let size = u64::from(out.size()).next_multiple_of(spec.pad_to_multiple_of.max(1));
        Ok(Self { file, spec, own, rows, out, source, is_changed, size, base_leads: recipe.base.is_some() })
    }

    /// Where the row of a token with a rule comes from.
    fn ruled(&self, parts: &Parts, rule: &TokenRule) -> Result<Option<Ruled>> {
        let error = |message: String| Error::at_line(&self.file, rule.line, message);
        let find = |model: &ModelRef| {
            named(parts, model)
                .ok_or_else(|| error(format!("`{}` is none of the models that are merged", model.written)))
        };
        let lacks =
            |model: &ModelRef, token: &str| error(format!("`{}` has no token {}", model.written, quoted(token)));
        Ok(match &rule.source {
            None => None,
            Some(TokenFrom::Zero) => Some((None, 0)),
            Some(TokenFrom::Model(model)) => {
                let source = find(model)?;
                let row = self.own[source].id(&rule.token).ok_or_else(|| lacks(model, &rule.token))?;
                Some((Some(source), row))
            }
            Some(TokenFrom::Token(model, token)) => {
                let source = find(model)?;
                let row = match token {
                    Token::Text(text) => self.own[source].id(text).ok_or_else(|| lacks(model, text))?,
                    Token::Id(id) if u64::from(*id) < self.rows[source] => *id,
                    Token::Id(id) => return Err(lacks(model, &id.to_string())),
                };
                Some((Some(source), row))
            }
        })
    }

    /// Puts embeddings and heads with the output's rows in the place of the stored ones.
    fn replace(&self, recipe: &Recipe, parts: &mut Parts) -> Result<()> {
        let rules: Vec<_> =
            self.spec.tokens.iter().map(|rule| Ok((rule, self.ruled(parts, rule)?))).collect::<Result<_>>()?;
        let donors: Vec<Vec<usize>> = [parts.parts.first(), parts.parts.last()]
            .into_iter()
            .flatten()
            .map(|part| {
                let mut donors = part.sources.clone();
                let with_base = part.recipe.base.is_some()
                    && (recipe.modules.is_empty()
                        || part.recipe.base_in_models.is_some()
                        || recipe.method.base.is_origin(true));
                if with_base && !donors.contains(&part.reference) {
                    donors.insert(0, part.reference);
                }
                donors
            })
            .collect();
        let mut made = Vec::new();
        for (source, rows) in self.rows.iter().enumerate() {
            let all = parts.sources[source].checkpoint.tensors().iter().enumerate();
            for (at, tensor) in all.filter(|(_, t)| tokenizer::is_by_token(&t.name) && t.shape.first() == Some(rows)) {
                let donors = &donors[usize::from(is_behind_layers(&tensor.name))];
                let held = |index: usize| {
                    let checkpoint = &parts.sources[index].checkpoint;
                    let tensor = checkpoint.get(&tensor.name).filter(|t| t.shape.first() == Some(&self.rows[index]))?;
                    Some(Held { shard: Arc::clone(checkpoint.shared_shard(tensor.shard)), tensor: tensor.clone() })
                };
                let mut tensors = Tensors { places: vec![None; parts.sources.len()], held: Vec::new() };
                tensors.place(source, &held);
                let table = self.table(source, donors, &rules, &mut |index| tensors.place(index, &held));
                let row_elems: u64 = tensor.shape[1..].iter().product();
                let mut shape = tensor.shape.clone();
                shape[0] = table.len() as u64;
                for other in &tensors.held {
                    if other.tensor.shape[1..] != tensor.shape[1..] {
                        let (name, written) = (quoted(&tensor.name), &parts.sources[source].written);
                        let message = format!(
                            "{name} of `{written}` has rows of {:?}, another model's of {:?}",
                            &tensor.shape[1..],
                            &other.tensor.shape[1..]
                        );
                        return Err(Error::input(message));
                    }
                }
                made.push((source, at, shape, Rows::new(tensors.held, table, row_elems)));
            }
        }
        for (source, at, shape, rows) in made {
            let (dtype, checkpoint) = (rows.dtype(), Arc::get_mut(&mut parts.sources[source].checkpoint));
            debug_assert_eq!(rows.len(), shape[0]);
            let checkpoint = checkpoint.ok_or_else(|| Error::internal("a checkpoint is shared while it is planned"))?;
            checkpoint.replace(at, dtype, shape, Arc::new(rows))?;
        }
        Ok(())
    }

    /// Where each row of one model's tensor comes from. `place` notes that a donor is used and gives its place.
    fn table(
        &self,
        source: usize,
        donors: &[usize],
        rules: &[(&TokenRule, Option<Ruled>)],
        place: &mut dyn FnMut(usize) -> Option<u32>,
    ) -> Vec<Row> {
        let mut table = vec![Row::Zero; self.size as usize];
        table.iter_mut().skip(self.out.size() as usize).for_each(|row| *row = Row::Padding);
        let mut is_known = vec![false; self.out.size() as usize];
        for (id, text) in self.out.tokens() {
            let own = self.own[source].id(text);
            let rule = rules.iter().find(|(rule, _)| rule.token == text);
            is_known[id as usize] = true;
            table[id as usize] = match (rule, own) {
                (Some((rule, Some((from, row)))), own) if rule.force || own.is_none() => match from {
                    None => Row::Zero,
                    Some(from) => place(*from).map_or(Row::Zero, |at| Row::Of(at, *row)),
                },
                (_, Some(own)) => Row::Of(0, own),
                (_, None) => {
                    let has = |donor: &usize| self.own[*donor].id(text).map(|row| (*donor, row));
                    let having: Vec<(usize, u32)> = donors.iter().filter_map(has).collect();
                    // The base's row counts for all; where there is no base, the mean of those that have one.
                    let base = having.iter().find(|(donor, _)| *donor == 0 && self.has_base(donors));
                    match (&having[..], base) {
                        ([], _) => Row::Zero,
                        ([(donor, row)], _) | (_, Some((donor, row))) => {
                            place(*donor).map_or(Row::Zero, |at| Row::Of(at, *row))
                        }
                        (several, None) => {
                            Row::Mean(several.iter().filter_map(|(donor, row)| Some((place(*donor)?, *row))).collect())
                        }
                    }
                }
            };
        }
        // A number that no token has keeps its row.
        for (id, row) in table.iter_mut().take(is_known.len()).enumerate() {
            if !is_known[id] && (id as u64) < self.rows[source] {
                *row = Row::Of(0, id as u32);
            }
        }
        table
    }

    fn has_base(&self, donors: &[usize]) -> bool {
        self.base_leads && donors.contains(&0)
    }

    /// The files of the output's tokenizer, and what `config.json` says of it.
    fn files(&self, parts: &Parts, files: &mut Files) -> Result<()> {
        let reference = &parts.sources[0].checkpoint;
        if let Some(config) = config_of(reference) {
            for section in ["", "text_config", "llm_config"] {
                let settings =
                    if section.is_empty() { Some(&config) } else { config.get(section).and_then(Value::as_object) };
                let Some(settings) = settings else { continue };
                let mut edit = |key: &str, value: u64| {
                    if settings.get(key).is_some_and(|old| old.is_u64() && old.as_u64() != Some(value)) {
                        files.config.push(Edit { section: section.into(), key: key.into(), value: value.into() });
                    }
                };
                edit("vocab_size", self.size);
                // Another model's tokenizer has its own tokens for begin and end.
                let Some(folder) = self.source.filter(|s| *s != 0).and_then(|s| parts.sources[s].checkpoint.folder())
                else {
                    continue;
                };
                let Some(named) = json_in(folder, SETTINGS) else { continue };
                for (token, key) in
                    [("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("pad_token", "pad_token_id")]
                {
                    let text = named.get(token).and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
                    if let Some(id) = text.and_then(|text| self.out.id(text)) {
                        edit(key, id.into());
                    }
                }
            }
        }
        let from = self.source.unwrap_or(0);
        let Some(folder) = parts.sources[from].checkpoint.folder() else { return Ok(()) };
        if from != 0 {
            leave_tokenizer(reference, files);
            copy_tokenizer(folder, files);
        }
        if !self.is_changed {
            return Ok(());
        }
        let text =
            serde_json::to_vec(&self.out.document).map_err(|e| Error::internal(format!("{}: {e}", tokenizer::FILE)))?;
        put(files, tokenizer::FILE, Content::Bytes(text));
        // What other readers take instead would tell of another vocabulary.
        for name in ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"] {
            files.made.retain(|f| f.name != name);
            files.left.push(name.into());
        }
        if let Some(mut settings) = json_in(folder, SETTINGS)
            && let Some(Value::Object(decoder)) = settings.get_mut("added_tokens_decoder")
        {
            decoder.retain(|_, token| {
                token.get("content").and_then(Value::as_str).is_some_and(|t| self.out.id(t).is_some())
            });
            for added in self.out.document.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
                let (Some(id), Some(fields)) = (added.get("id"), added.as_object()) else { continue };
                let fields: Map<String, Value> =
                    fields.iter().filter(|(k, _)| *k != "id").map(|(k, v)| (k.clone(), v.clone())).collect();
                decoder.entry(id.to_string()).or_insert(fields.into());
            }
            put(files, SETTINGS, Content::Bytes(pretty(&settings.into())?));
        }
        Ok(())
    }
}

/// The tensors that one tensor's rows are taken of.
struct Tensors {
    places: Vec<Option<u32>>,
    held: Vec<Held>,
}

impl Tensors {
    /// The place of a model's tensor, which is taken in if it is not there yet; `None` if the model has none.
    fn place(&mut self, source: usize, held: &dyn Fn(usize) -> Option<Held>) -> Option<u32> {
        if self.places[source].is_none() {
            self.held.push(held(source)?);
            self.places[source] = Some(self.held.len() as u32 - 1);
        }
        self.places[source]
    }
}

/// Adds what other vocabularies have besides: in their order, by number. Whether anything came.
fn unite(out: &mut Vocabulary, others: &[Vocabulary]) -> Result<bool> {
    let mut changed = false;
    for other in others {
        let new: Vec<String> =
            other.tokens().filter(|(_, text)| out.id(text).is_none()).map(|(_, text)| text.to_owned()).collect();
        for text in &new {
            out.push(text, Some(other))?;
        }
        changed |= !new.is_empty();
        let new: std::collections::HashSet<&str> = new.iter().map(String::as_str).collect();
        out.take_merges(other, &|text| new.contains(text));
    }
    Ok(changed)
}

/// The source that a recipe means by a model's name.
fn named(parts: &Parts, model: &ModelRef) -> Option<usize> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let same_name = parts.sources.iter().position(|s| s.written == model.written);
    same_name.or_else(|| parts.sources.iter().position(|s| real(s.checkpoint.path()) == real(&model.path)))
}

/// Rows of a model's embedding of tokens.
fn embedding_rows(checkpoint: &Checkpoint) -> Option<u64> {
    let all = checkpoint.tensors();
    let named = |is: fn(&str) -> bool| all.iter().find(|t| is(&t.name) && t.shape.len() == 2).map(|t| t.shape[0]);
    named(tokenizer::is_embedding).or_else(|| named(tokenizer::is_by_token))
}

fn leave_tokenizer(reference: &Checkpoint, files: &mut Files) {
    let Some(Ok(entries)) = reference.folder().map(std::fs::read_dir) else { return };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    files.left.extend(names.filter(|name| tokenizer::is_file(name)));
}

fn copy_tokenizer(folder: &Path, files: &mut Files) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| tokenizer::is_file(name) && is_wanted(name)) {
        let path = folder.join(&name);
        if std::fs::metadata(&path).is_ok_and(|facts| facts.is_file() && facts.len() <= MAX_BYTES) {
            put(files, &name, Content::Copy(path));
        }
    }
}

fn put(files: &mut Files, name: &str, content: Content) {
    files.made.retain(|f| f.name != name);
    files.made.push(SmallFile { name: name.into(), content });
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::internal(format!("{SETTINGS}: {e}")))?;
    text.push(b'\n');
    Ok(text)
}

/// The output's chat template, where the recipe names one.
fn template_files(
    template: &ChatTemplate,
    parts: &Parts,
    settings_of: usize,
    files: &mut Files,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let text = match template {
        ChatTemplate::Text(text) => text.clone(),
        ChatTemplate::Auto => {
            let folders = parts.sources.iter().filter_map(|s| s.checkpoint.folder());
            let Some(text) = commonest(folders.filter_map(template_of)) else {
                warnings.push("`chat_template: auto`: no model has a chat template".into());
                return Ok(());
            };
            text
        }
    };
    put(files, TEMPLATE, Content::Bytes(text.clone().into_bytes()));
    let made = files.made.iter().find_map(|f| match &f.content {
        Content::Bytes(bytes) if f.name == SETTINGS => serde_json::from_slice(bytes).ok(),
        _ => None,
    });
    let folder = parts.sources[settings_of].checkpoint.folder();
    if let Some(mut settings) = made.or_else(|| json_in(folder?, SETTINGS)) {
        settings.insert("chat_template".into(), text.into());
        put(files, SETTINGS, Content::Bytes(pretty(&settings.into())?));
    }
    Ok(())
}

/// The text that comes most often; of several the first.
fn commonest(texts: impl Iterator<Item = String>) -> Option<String> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for text in texts.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) {
        match counts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => counts.push((text, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(text, _)| text)
}

/// The chat template of a model.
fn template_of(folder: &Path) -> Option<String> {
    let path = folder.join(TEMPLATE);
    if std::fs::metadata(&path).is_ok_and(|facts| facts.is_file() && facts.len() <= MAX_BYTES) {
        return std::fs::read_to_string(path).ok();
    }
    match json_in(folder, SETTINGS)?.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(several) => {
            let default = several.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            default.or(several.first())?.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_template_wins_and_the_first_of_equals() {
        let of = |texts: &[&str]| commonest(texts.iter().map(|t| (*t).to_owned()));
        assert_eq!(of(&["a", "b", " b "]).as_deref(), Some("b"));
        assert_eq!(of(&["a", "b"]).as_deref(), Some("a"));
        assert_eq!(of(&["", " "]), None);
    }
}
