//! The contract's operations on a device, beside those of the CPU's portable loops.

use merganser::backend::cpu::device::Cpu;
use merganser::instructions::Instructions;

use super::Gpu;
use super::lane::GpuLane;
use crate::support::operations::{self, Body};

#[track_caller]
fn agree(body: Body, phases: &[usize]) {
    let Some(gpu) = Gpu::open() else { return };
    for phase in phases {
        body(&mut Cpu(Instructions::Portable).lane(), &mut GpuLane { gpu: &gpu, phase: *phase });
    }
}

#[test]
fn every_rule_gives_the_cpus_bits_for_every_type() {
    agree(operations::every_rule_and_type, &[0]);
}

#[test]
fn every_length_and_every_start_in_memory_gives_the_cpus_bits() {
    agree(operations::every_length, &[0, 1, 8]);
}

#[test]
fn sixty_four_models_are_merged_at_once() {
    agree(operations::sixty_four_models, &[0]);
}

#[test]
fn cuts_and_random_words_drop_what_they_drop_on_the_cpu() {
    agree(operations::cuts_and_random_words, &[0]);
}

#[test]
fn stages_prune_what_they_prune_on_the_cpu() {
    agree(operations::stages_prune, &[0]);
}

#[test]
fn numbers_that_are_none_are_counted_as_on_the_cpu() {
    agree(operations::numbers_that_are_none, &[0]);
}

#[test]
fn the_cut_is_the_kth_key_whatever_is_ranked() {
    agree(operations::cuts_are_the_kth_key, &[0, 1]);
}

#[test]
fn a_search_goes_through_stages_and_through_many_models() {
    agree(operations::cuts_of_many_models_behind_stages, &[0]);
}

#[test]
fn norms_and_products_have_the_cpus_bits() {
    agree(operations::norms_and_products, &[0, 1, 2]);
}

#[test]
fn mean_scores_of_rows_and_columns_have_the_cpus_bits() {
    agree(operations::scores_of_rows_and_columns, &[0]);
}

#[test]
fn lines_have_the_cpus_products_and_are_weighed_as_there() {
    agree(operations::products_of_lines, &[0, 1]);
    agree(operations::weights_of_lines, &[0, 1]);
}
