// One text's drafts; the device's form of drafts/contract.py.
#pragma once

#include "rows/rows.cuh"

constexpr int MAX_STOPS = 7;
constexpr int WEIGHT_BYTES = 32;  // kept per draft of how its logits became weights

struct Drafts : Rows {    // position: of draft 0; step: verifications so far
  int* ids;                // (block (1 + block),): the drafts, then masks
  int* start;              // (1,): rows in the cache
  void* logits;            // (block, stride): what each draft was drawn from; null at temperature 0
  unsigned char* weights;  // (block, WEIGHT_BYTES): how these became weights
  double* shares;          // (block,): sums of these weights
  int* token;              // (block,): per verified row, the token behind it; -1: cannot be sampled
  unsigned char* kept;     // (block,): whether that is the draft which stands there
  int* shown;              // mapped (block,): ids that the last verification made certain
  int stride;              // vocab, in whole groups of 4 chunks
  int num_stops;
  float share;             // of the causal logits
  float rest;              // of the diffusion logits
  int appended;            // rows in the cache before the last verification
  int num_kept;            // drafts that it kept
  int stops[MAX_STOPS];
};
