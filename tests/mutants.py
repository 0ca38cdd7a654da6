"""Deliberate breaks of lines that keep promises, each with the test that must notice: `make mutants` tries them all.

Each break is made in a copy of the tree, where its test must fail. A break that survives, or whose text is not
there exactly once any more, is an error: then a promise has lost its test, or this table its line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
SECONDS = 240


@dataclass(frozen=True)
class Mutant:
    """A line of `file` (below fostore/) that is replaced, and the test that fails then."""

    name: str
    file: str
    old: str
    new: str
    test: str


def cuts(work: str, suffix: str) -> str:
    return f"test_powercut.py::test_a_power_cut_takes_nothing_that_was_promised[{suffix}-{work}]"


def faults(work: str, suffix: str) -> str:
    return f"test_faults.py::test_a_fault_takes_nothing_that_was_promised[{suffix}-{work}]"


MUTANTS = [
    Mutant(
        "codes-excluded",
        "encodings/codes.py",
        "        codes[excluded] = last\n",
        "        codes[excluded] = last - 1\n",
        "test_quantised.py::test_no_class_is_off_by_more_than_half_a_step",
    ),
    Mutant(
        "codes-mask",
        "encodings/codes.py",
        "np.minimum(depth, DEEPEST, out=depth)",
        "depth",
        "test_quantised.py::test_a_class_masked_with_the_lowest_float_costs_the_others_little",
    ),
    Mutant(
        "draws-row",
        "encodings/sampled.py",
        "            first = (start * members + i) * num_draws",
        "            first = i * num_draws",
        "test_quantised.py::test_a_batch_has_the_same_bytes_however_it_is_cut_and_lies_in_memory",
    ),
    Mutant(
        "fidelity-committed",
        "writing/fidelity.py",
        "            if _lies_in(rows, picked):\n",
        "            if True:\n",
        "test_fidelity.py::test_a_writer_that_dies_has_recorded_what_it_committed",
    ),
    Mutant(
        "max-kl-earlier",
        "writing/fidelity.py",
        "        self._bound.check_figures(self._compared)",
        "        pass",
        "test_fidelity.py::test_a_bound_holds_for_rows_of_an_earlier_run",
    ),
    Mutant(
        "kept-elsewhere",
        "encodings/alike.py",
        "np.maximum(given, expected), given)",
        "expected, given)",
        "test_topk.py::test_nearly_equal_classes_may_change_places_and_others_may_not",
    ),
    Mutant(
        "journal-no-sync",
        "formats/zarr/writer.py",
        "            disk.sync_data(self._journal)\n        except BaseException:",
        "            pass\n        except BaseException:",
        cuts("First", ".zarr"),
    ),
    Mutant(
        "record-before-data",
        "writing/pipeline.py",
        "                self._units.sync()\n                self._units.commit(runs)\n",
        "                self._units.commit(runs)\n                self._units.sync()\n",
        cuts("First", ".zarr"),
    ),
    Mutant(
        "write_whole-no-dirsync",
        "disk.py",
        "        raise\n    sync_directory(path.parent)\n",
        "        raise\n",
        cuts("Noted", ".zarr"),
    ),
    Mutant(
        "write_whole-no-sync",
        "disk.py",
        "        write_at(fd, data, 0)\n        sync_data(fd)\n",
        "        write_at(fd, data, 0)\n",
        cuts("Noted", ".zarr"),
    ),
    Mutant(
        "tails-no-dirsync",
        "formats/zarr/tails.py",
        "                disk.sync_directory(self._folder.array(index))\n",
        "                pass\n",
        cuts("Scattered", ".zarr"),
    ),
    Mutant(
        "hashes-no-sync",
        "formats/zarr/writer.py",
        "            disk.sync_file(temporary)\n",
        "            pass\n",
        cuts("First", ".zarr"),
    ),
    Mutant(
        "seal-no-names-sync",
        "formats/zarr/writer.py",
        "            disk.sync_directory(folder)\n",
        "            pass\n",
        "test_integrity.py::test_names_of_shards_and_hashes_are_durable_before_the_shapes_show_them",
    ),
    Mutant(
        "new-folders-no-sync",
        "disk.py",
        "    for folder in named:\n        sync_directory(folder)\n",
        "",
        cuts("First", ".zarr"),
    ),
    Mutant(
        "create-no-dirsync",
        "formats/zarr/resume.py",
        "    disk.sync_directory(path.parent)\n",
        "",
        cuts("First", ".zarr"),
    ),
    Mutant(
        "slot-no-sync",
        "formats/hdf5/writer.py",
        "        disk.sync_data(self._fd)\n        self._sequence, self._open",
        "        self._sequence, self._open",
        cuts("First", ".h5"),
    ),
    Mutant(
        "h5-data-no-sync",
        "formats/hdf5/writer.py",
        '        """Make everything durable that was written before the call."""\n        disk.sync_data(self._fd)\n',
        '        """Make everything durable that was written before the call."""\n',
        cuts("First", ".h5"),
    ),
    Mutant(
        "h5-hashes-no-sync",
        "formats/hdf5/writer.py",
        "        if not known:\n            return\n        disk.sync_data(self._fd)\n",
        "        if not known:\n            return\n",
        "test_integrity.py::test_hashes_are_durable_before_a_slot_says_so",
    ),
    Mutant(
        "h5-half-hashes-trusted",
        "formats/hdf5/slots.py",
        "            and all(run.crc is None for run in runs)\n",
        "",
        "test_integrity.py::test_hashes_of_which_half_was_written_are_computed_anew",
    ),
    Mutant(
        "h5-make-no-sync",
        "formats/hdf5/build.py",
        "        disk.sync_data(fd)\n        disk.rename(temporary, path)",
        "        disk.rename(temporary, path)",
        cuts("Extended", ".h5"),
    ),
    Mutant(
        "h5-rebuild-no-dirsync",
        "formats/hdf5/writer.py",
        "        disk.sync_directory(self._path.parent)\n",
        "",
        cuts("Extended", ".h5"),
    ),
    Mutant(
        "h5-reopen-keeps-hashes",
        "formats/hdf5/writer.py",
        "        disk.write_at(self._fd, zeros, self._hashes_at(unit))\n",
        "",
        "test_integrity.py::test_plain_readers_find_no_hash_of_a_block_that_has_grown",
    ),
    Mutant(
        "h5-header-no-sync",
        "formats/hdf5/writer.py",
        "        disk.sync_data(self._fd)\n        self.header = header\n",
        "        self.header = header\n",
        "test_integrity.py::test_a_header_is_durable_before_its_mirrors_change",
    ),
    Mutant(
        "slot-crc-ignored",
        "formats/hdf5/slots.py",
        "        or checksum(HEAD.pack(magic, sequence, length, 0, 0) + payload) != crc\n",
        "",
        "test_slots.py",
    ),
    Mutant(
        "journal-crc-ignored",
        "formats/zarr/journal.py",
        "if magic != _RECORD_MAGIC or checksum(data[at : at + RECORD_BYTES - 4]) != own:",
        "if magic != _RECORD_MAGIC:",
        "test_journal.py",
    ),
    Mutant(
        "journal-last-byte-ignored",
        "formats/zarr/journal.py",
        "    if suspect is not None:\n        at = HEADER_BYTES + suspect",
        "    if False:\n        at = HEADER_BYTES + suspect",
        "test_journal.py",
    ),
    Mutant(
        "adopt-ignores-damage",
        "writing/ledger.py",
        "            if lost:\n",
        "            if False:\n",
        "test_integrity.py::test_committed_rows_that_changed_are_not_gone_on_with",
    ),
    Mutant(
        "failed-sync-repeated",
        "formats/zarr/tails.py",
        "        except OSError as error:\n            self._error = error\n            raise\n        finally:",
        "        except OSError as error:\n            raise\n        finally:",
        "test_integrity.py::test_a_sync_that_failed_is_not_repeated_and_taken_for_good",
    ),
    Mutant(
        "commit-after-failed-sync",
        "formats/zarr/writer.py",
        "            self._failed = True  # nobody",
        "            pass  # nobody",
        "test_integrity.py::test_no_commit_follows_a_record_that_may_not_be_durable",
    ),
    Mutant(
        "resume-off-by-one",
        "writing/writer.py",
        "        self._position = written.prefix\n",
        "        self._position = max(written.prefix - 1, 0)\n",
        "test_writer.py",
    ),
    Mutant(
        "class-names-ignored",
        "writing/request.py",
        "            if value is not None and value != stored:\n",
        '            if value is not None and name != "class_names" and value != stored:\n',
        "test_writer.py",
    ),
    Mutant(
        "epoch-ignored",
        "loading/order.py",
        "        return _sorted_order(count, seed, epoch)[start:stop]",
        "        return _sorted_order(count, seed, 0)[start:stop]",
        "test_loading.py",
    ),
    Mutant(
        "epoch-ignored-large",
        "loading/order.py",
        "_placed(start, stop, count, _keys(seed, epoch))",
        "_placed(start, stop, count, _keys(seed, 0))",
        "test_loading.py",
    ),
    Mutant(
        "cache-trusted",
        "places/cache.py",
        "            if len(data) != last - first or crc32(data) != crc:",
        "            if len(data) != last - first:",
        "test_cache.py",
    ),
    Mutant(
        "redirect-followed",
        "places/web.py",
        "    if following.netloc != asked.netloc and _is_private(host):",
        "    if False:",
        "test_remote.py",
    ),
    Mutant(
        "forked-child-waits",
        "places/remote.py",
        "        if _users and os.getpid() not in _users:",
        "        if False:",
        "test_remote.py",
    ),
    Mutant(
        "bundle-of-another-store",
        "reading/store.py",
        "    if digest is not None and store.header.digest != digest:",
        "    if False:",
        "test_remote.py",
    ),
    Mutant(
        "download-unchecked",
        "reading/download.py",
        "    if wrong:",
        "    if False:",
        "test_remote.py",
    ),
    Mutant(
        "aside-not-restored",
        "disk.py",
        "        rename(away, path)\n        sync_directory(path.parent)\n",
        "        pass\n",
        "test_integrity.py::test_an_exchange_by_renames_that_was_cut_is_undone_by_whoever_writes_next",
    ),
    Mutant(
        "overwrite-no-dirsync",
        "writing/target.py",
        "            disk.sync_directory(self.path.parent)\n            disk.remove(self.lies_at)\n",
        "            disk.remove(self.lies_at)\n",
        cuts("Overwritten", ".zarr"),
    ),
    Mutant(
        "part-record-kept",
        "conversion/part.py",
        "        disk.remove(self._record)\n        disk.sync_directory(self.target.parent)\n        if",
        "        if",
        "test_conversion_resume.py",
    ),
    Mutant(
        "part-no-dirsync",
        "conversion/part.py",
        "            disk.rename(self.path, self.target)\n        disk.sync_directory(self.target.parent)\n",
        "            disk.rename(self.path, self.target)\n",
        cuts("Converted", ".h5"),
    ),
    Mutant(
        "sink-no-sync",
        "files/_sink.py",
        "            disk.sync_data(self._fd)\n",
        "            pass\n",
        "test_powercut.py::test_a_file_is_whole_or_not_there_and_stays_once_it_was_promised",
    ),
    Mutant(
        "archive-ended-after-error",
        "files/npz.py",
        "        archive.fp = None\n",
        "        pass\n",
        "test_conversion_files.py::test_a_full_disk_is_what_it_is_through_every_library",
    ),
    Mutant(
        "offsets-of-texts-followed",
        "files/_frames.py",
        "        array = sound(batch.column(0), row, name)\n",
        "        array = batch.column(0)\n",
        "test_conversion_files.py::test_offsets_of_texts_that_lead_out_of_a_file_are_never_followed[-8]",
    ),
    Mutant(
        "distrust-ignored",
        "conversion/conversion.py",
        '            self._verify_level = "full"\n\n    def _end',
        "            pass\n\n    def _end",
        "test_conversion_resume.py",
    ),
    Mutant(
        "recorded-hashes-trusted",
        "formats/zarr/writer.py",
        "        if unit in self._recorded:\n",
        "        if False:\n",
        "test_integrity.py::test_hashes_of_a_seal_that_was_cut_short_do_not_vouch_for_rows",
    ),
    Mutant(
        "lock-name-unchecked",
        "places/lock.py",
        "            if _is_at(fd, path):\n                break\n",
        "            break\n",
        "test_lock.py",
    ),
    Mutant(
        "lock-kept-when-interrupted",
        "places/lock.py",
        "        _give_back(path, span)\n        raise\n",
        "        raise\n",
        "test_integrity.py::test_ctrl_c_while_the_lock_is_signed_leaves_no_lock",
    ),
    Mutant(
        "published-crc-skipped",
        "formats/zarr/writer.py",
        "            runs = [*self._published_runs(runs), *runs]\n",
        "            pass\n",
        "test_integrity.py::test_published_rows_of_a_unit_that_goes_on_get_a_checksum_of_their_own",
    ),
    Mutant(
        "replan-header-first",
        "formats/zarr/writer.py",
        "        if self._journal is None:  # before the header",
        "        disk.write_whole(self._folder.path / METADATA, text)\n        if self._journal is None:  # before the header",
        cuts("Extended", ".zarr"),
    ),
    Mutant(
        "softmax-temperature",
        "encodings/dense.py",
        "            return simplex.softmax(x, temperature)",
        "            return simplex.softmax(x, temperature**2)",
        "test_reading.py",
    ),
    Mutant(
        "evict-no-sync",
        "formats/zarr/tails.py",
        "                    if tail.dirty:\n                        disk.sync_data(tail.fd)\n",
        "                    pass\n",
        "test_integrity.py::test_a_tail_is_durable_before_its_descriptor_is_given_away",
    ),
    Mutant(
        "dirty-before-write",
        "formats/zarr/tails.py",
        "            disk.write_at(tail.fd, data, offset)\n            tail.dirty = True  #",
        "            tail.dirty = True\n            disk.write_at(tail.fd, data, offset)  #",
        "test_integrity.py::test_a_sync_during_a_write_does_not_count_for_it",
    ),
    Mutant(
        "f16-sums-unchecked",
        "encodings/dense.py",
        "        simplex.check(columns[0], schema.kind, tol, start, bfloat16=halves)",
        "        columns[0].dtype.itemsize == 2 or simplex.check(columns[0], schema.kind, tol, start, bfloat16=halves)",
        "test_integrity.py::test_sums_of_half_precision_are_checked_where_rows_come_as_they_are_stored",
    ),
    Mutant(
        "header-unchecked",
        "schema/header.py",
        "            if written != jsontext.checksum(jsontext.canonical(rest)):\n",
        "            if False:\n",
        "test_integrity.py::test_a_header_that_was_changed_is_refused",
    ),
    Mutant(
        "meta-unchecked",
        "reading/audit.py",
        "    if not reader.header.meta_is_sound:\n",
        "    if False:\n",
        "test_integrity.py::test_metadata_that_was_changed_is_told_by_verify_and_written_anew_counts",
    ),
    Mutant(
        "short-read-is-the-end",
        "disk.py",
        "            if not count:\n                break\n            done += count\n",
        "            done += count\n            break\n",
        "test_faults.py::test_system_calls_that_do_less_than_they_were_asked_for_change_nothing",
    ),
    Mutant(
        "short-pread-is-the-end",
        "disk.py",
        "        offset += len(piece)\n",
        "        break\n",
        "test_faults.py::test_system_calls_that_do_less_than_they_were_asked_for_change_nothing",
    ),
    Mutant(
        "read-error-keeps-frames",
        "formats/hdf5/stream.py",
        "error.with_traceback(None)",
        "error",
        "test_hdf5.py::test_a_read_that_failed_does_not_crash_the_process_at_its_end",
    ),
    Mutant(
        "mask-ignored",
        "encodings/rows.py",
        "    if np.ma.is_masked(rows):",
        "    if False:",
        "test_writer.py::test_what_lies_under_a_mask_is_no_row",
    ),
    Mutant(
        "hashes-cast",
        "schema/sides/fingerprints.py",
        'if given.dtype.kind not in "iu" or is_signed:',
        "if False:",
        "test_writer.py::test_hashes_that_are_none_are_refused_and_the_writer_goes_on",
    ),
    Mutant(
        "json-stray-header",
        "files/json/read.py",
        "    _refuse_stray_header(scanner, meta, {name: offsets[name] for name in beside})\n",
        "",
        "test_integrity.py::test_a_json_store_whose_keys_were_damaged_does_not_pass_for_plain_rows",
    ),
    Mutant(
        "second-thread-taken",
        "writing/writer.py",
        "        if own is not writing and writing is not None and writing.is_alive():\n",
        "        if False:\n",
        "test_integrity.py::test_a_second_thread_is_refused_by_name",
    ),
    Mutant(
        "control-characters",
        "schema/shown.py",
        "    return _UNSHOWN.sub(",
        "    return text or _UNSHOWN.sub(",
        "test_integrity.py::test_a_strangers_metadata_does_not_command_the_terminal",
    ),
    Mutant(
        "short-chunk-taken",
        "formats/chunks/codecs.py",
        "    if nbytes != size:\n",
        "    if nbytes > size:\n",
        "test_foreign.py::test_a_chunk_that_unpacks_to_more_than_it_may_is_refused[zstd]",
    ),
    Mutant(
        "lzf-length-not-counted",
        "formats/chunks/lzf.py",
        "    length = _length(data)\n",
        "    length = size\n",
        "test_foreign.py::test_lzf_that_is_short_or_long_never_shows_what_the_memory_held",
    ),
    Mutant(
        "chunk-of-another-folder",
        "formats/chunks/zarr_files.py",
        "            self.check()  # afterwards",
        "            pass  # afterwards",
        "test_foreign.py::test_rows_of_another_store_at_the_same_path_are_never_mixed_in[zarr: zstd]",
    ),
    Mutant(
        "run-of-another-grown",
        "formats/zarr/resume.py",
        "run if run.start in own else replace(run, grows=False)",
        "run",
        "test_seams.py::test_a_run_of_another_journal_is_never_grown",
    ),
    Mutant(
        "tails-of-others-cleaned",
        "formats/zarr/tails.py",
        "    return claim.holds(unit) and (",
        "    return (",
        "test_seams.py::test_a_writer_touches_nothing_that_it_does_not_claim",
    ),
    Mutant(
        "shapes-raised-by-a-part",
        "formats/zarr/writer.py",
        "        if not self._claim.is_whole:\n            return\n",
        "",
        "test_seams.py::test_a_writer_touches_nothing_that_it_does_not_claim",
    ),
    Mutant(
        "encoding-lost",
        "encodings/__init__.py",
        "default_encoding(kind) if is_default else schema.encoding",
        "default_encoding(kind)",
        "test_seams.py",
    ),
    Mutant(
        "place-follows-a-link",
        "places/local.py",
        "            if not stat.S_ISDIR(os.lstat(path).st_mode):\n",
        "            if not os.path.isdir(path):\n",
        "test_places.py::test_nothing_but_files_is_read_and_no_link_is_followed",
    ),
    Mutant(
        "fetched-rows-of-another-store",
        "formats/views/fetched.py",
        "            self._recheck()\n            for name, version",
        "            for name, version",
        "test_place_reads.py::test_a_store_that_changes_under_the_reader_gives_no_row_of_the_other",
    ),
    Mutant(
        "fetched-rows-of-another-file",
        "formats/views/fetched.py",
        "if self._versions.setdefault(name, version) != version:",
        "if self._versions.setdefault(name, version) is None:",
        "test_place_reads.py::test_a_file_that_changes_alone_is_refused",
    ),
    Mutant(
        "fetched-rows-cut",
        "formats/views/fetched.py",
        "            if len(data) != last - first:\n",
        "            if len(data) > last - first:\n",
        "test_place_reads.py::test_a_short_read_is_damage_and_no_row",
    ),
    Mutant(
        "layout-needs-no-reader",
        "schema/row.py",
        "            TEXT_LAYOUT: any(column.layout for column in self.columns),\n",
        "",
        "test_text_ids.py::test_the_bytes_and_the_digest_are_those_of_before[zarr]",
    ),
    Mutant(
        "index-trusts-hashes",
        "reading/ids.py",
        "                is_known[left] = self._keys(self._positions[at[left]]) == keys[left]\n",
        "                is_known[left] = True\n",
        "test_index_of.py::test_ids_of_one_hash_are_told_apart",
    ),
    Mutant(
        "index-takes-the-first-of-two",
        "reading/ids.py",
        "            if len(twice):\n",
        "            if False:\n",
        "test_index_of.py::test_two_rows_with_one_id_are_refused",
    ),
    Mutant(
        "id-that-ends-with-nul",
        "reading/ids.py",
        "        if has_nul:  #",
        "        if False:  #",
        "test_index_of.py::test_what_is_no_id_is_refused",
    ),
    Mutant(
        "labels-keep-the-old-classes",
        "conversion/changes.py",
        "            labels = moved[rows]\n",
        "            labels = rows\n",
        "test_kept_labels.py::test_labels_follow_their_classes",
    ),
    Mutant(
        "labels-are-not-hashed",
        "schema/columns.py",
        "content id class_label sequence",
        "content id sequence",
        "test_kept_labels.py::test_labels_are_part_of_the_content",
    ),
    Mutant(
        "tokens-need-no-reader",
        "schema/row.py",
        "            TOKEN_ROWS: self.row_axis == TOKEN,\n",
        "",
        "test_token_rows.py::test_sequences_come_back_one_by_one[.zarr]",
    ),
    Mutant(
        "empty-sequences-are-not-content",
        "schema/digest.py",
        "{**header.counts, ",
        '{"num_samples": header.num_samples, ',
        "test_token_rows.py::test_the_number_of_sequences_is_part_of_the_content",
    ),
    Mutant(
        "sequences-in-any-order",
        "writing/sides.py",
        "            self._order.add(start, columns, written)\n",
        "            pass\n",
        "test_token_rows.py::test_rows_out_of_order_are_refused_whatever_comes_first[.zarr]",
    ),
    Mutant(
        "offsets-after-the-header",
        "formats/zarr/writer.py",
        "        write_offsets(self._folder, offsets)\n        disk.write_whole(self._folder.path / METADATA, text)\n",
        "        disk.write_whole(self._folder.path / METADATA, text)\n        write_offsets(self._folder, offsets)\n",
        "test_powercut.py::test_a_power_cut_leaves_sequences_where_they_begin[.zarr]",
    ),
    Mutant(
        "offsets-not-synced",
        "formats/hdf5/writer.py",
        "view(np.uint8), extent.offset)\n            disk.sync_data(self._fd)\n",
        "view(np.uint8), extent.offset)\n",
        "test_powercut.py::test_a_power_cut_leaves_sequences_where_they_begin[.h5]",
    ),
    Mutant(
        "tokens-are-not-compared",
        "pairing/sequences.py",
        "        if self.compare and rows.tokens is not None:\n",
        "        if False:\n",
        "test_token_training.py::test_a_batch_of_other_tokens_is_refused",
    ),
    Mutant(
        "offsets-are-not-verified",
        "reading/audit.py",
        "is_whole and not _has_its_offsets(reader)",
        "False",
        "test_token_rows.py::test_offsets_that_changed_are_reported[.h5]",
    ),
    Mutant(
        "publish-no-lock",
        "publishing/publication.py",
        "    with Lock.acquire(target.staging):\n",
        "    if target.staging:\n",
        "test_publishing_faults.py::test_one_publisher_at_a_time[.zip]",
    ),
    Mutant(
        "publish-believes-old-lists",
        "publishing/targets/objects.py",
        "self._listed() if claim is None else claim",
        "self._listed()",
        "test_publishing_faults.py::test_after_a_kill_no_list_is_believed_of_what_was_overwritten[5]",
    ),
    Mutant(
        "publish-unchecked",
        "publishing/bundle.py",
        'damage = [f for f in copy.verify() if f.severity == "damage"]',
        "damage = []",
        "test_publishing_faults.py::test_damage_that_came_before_is_named",
    ),
    Mutant(
        "parquet-of-today",
        "conversion/plan.py",
        "    if is_plain and name not in FORMATS and source.digest and source.header:\n",
        "    if False:\n",
        "test_publishing_faults.py::test_a_bundle_with_parquet_depends_on_the_store_alone[.zarr]",
    ),
    Mutant(
        "hashes-of-a-bundle-ignored",
        "publishing/verification.py",
        "        elif name in actual and actual[name][1] != sha256:",
        "        elif False:",
        "test_verification.py::test_a_change_of_any_file_is_seen_wherever_the_bundle_lies[http]",
    ),
    Mutant(
        "first-publications-mixed",
        "publishing/targets/hub.py",
        "        if is_filled:",
        "        if False:",
        "test_publishing_targets.py::test_of_two_first_publications_one_is_refused",
    ),
    Mutant(
        "download-goes-on-in-another-file",
        "reading/download.py",
        'f"{name}\\0{version}".encode()',
        "name.encode()",
        "test_remote.py::test_a_download_of_one_file_goes_on_in_its_middle_while_it_is_the_same",
    ),
    Mutant(
        "downloads-mixed",
        "reading/download.py",
        "with Lock.acquire(target):",
        "if True:",
        "test_remote.py::test_two_downloads_to_one_path_do_not_write_the_same_files",
    ),
    Mutant(
        "compressed-ranges",
        "places/web.py",
        '    if answer.headers.get("Content-Encoding", "identity") != "identity":',
        "    if False:",
        "test_remote.py::test_a_server_that_compresses_is_refused",
    ),
    Mutant(
        "listed-nowhere",
        "publishing/verification.py",
        "if name not in lists and name != TAGS:",
        "if False:",
        "test_publishing.py::test_tampering_with_any_file_is_found[.zarr]",
    ),
    Mutant(
        "put-over-what-is-there",
        "places/local.py",
        "                is_ours = disk.link(temporary, path)\n",
        "                is_ours = True\n                disk.rename(temporary, path)\n",
        "test_units.py::test_who_wakes_up_after_the_seal_changes_nothing",
    ),
    Mutant(
        "put-over-what-is-there-s3",
        "places/remote.py",
        '        mode: Any = "create"\n',
        '        mode: Any = "overwrite"\n',
        "test_units.py::test_who_wakes_up_after_the_seal_changes_nothing",
    ),
    Mutant(
        "replaced-whatever-was-seen",
        "places/local.py",
        "                is_ours = _stamp(os.fstat(fd)) == replaces\n",
        "                is_ours = True\n",
        "test_places.py::test_a_file_is_made_once_and_replaced_where_it_is_still_the_one_that_was_seen",
    ),
    Mutant(
        "sealed-unseen-behind-a-mark",
        "formats/zarr/units.py",
        "                if self._is_sealed():\n",
        "                if False:\n",
        "test_units.py::test_who_wakes_up_after_the_seal_changes_nothing",
    ),
    Mutant(
        "record-of-a-unit-first",
        "formats/zarr/units.py",
        "            for name, data in files:\n                version = self._place.put(name, data)\n",
        "            self._place.put(name_of(self._folder, whole.unit), replace(record, columns=((0, 0, ''),) * "
        "len(shards)).pack())\n            for name, data in files:\n"
        "                version = self._place.put(name, data)\n",
        "test_units.py::test_what_an_attempt_left_that_did_not_commit_is_replaced",
    ),
    Mutant(
        "replaced-without-a-mark",
        "formats/zarr/units.py",
        "            if mark is not None and self._place.version(name_of(self._folder, unit)) != mark:\n",
        "            if False:\n",
        "test_units.py::test_who_replaced_what_another_left_and_wakes_up_after_the_seal_changes_nothing",
    ),
    Mutant(
        "files-not-held-against-records",
        "formats/zarr/checked.py",
        "            if known[unit] != _stamp(size, version) and not self._holds(layout, unit, record, crc):\n",
        "            if False:\n",
        "test_units.py::test_files_that_are_not_those_of_their_record_are_given_up_and_written_again",
    ),
    Mutant(
        "order-over-shares-unseen",
        "writing/sides.py",
        "            order.follow(start, keys)\n",
        "",
        "test_units.py::test_rows_of_tokens_come_from_many_and_their_order_is_held_over_all",
    ),
    Mutant(
        "another-store-joined",
        "formats/zarr/units.py",
        "        if header.id != self.header.id:\n",
        "        if False:\n",
        "test_units.py::test_an_older_store_of_the_path_commits_nothing_to_the_new_one",
    ),
    Mutant(
        "finished-with-what-is-missing",
        "writing/writer.py",
        "        if missing:\n            raise RowError(\n",
        "        if False:\n            raise RowError(\n",
        "test_units.py::test_what_is_committed_is_read_before_the_end_and_what_is_not_is_refused",
    ),
    Mutant(
        "topk-ties-by-any-class",
        "encodings/selection.py",
        "    named[rows, place] = classes\n",
        "    named[rows, place] = classes[::-1] * 0 + classes ^ 7\n",
        "test_topk.py::test_wide_rows_are_selected_as_narrow_ones[True-1000]",
    ),
    Mutant(
        "topk-last-block-short",
        "encodings/selection.py",
        "        np.maximum(maxima[:, :rest], x[:, whole * stride :], out=maxima[:, :rest])\n",
        "        pass\n",
        "test_topk.py::test_wide_rows_are_selected_as_narrow_ones[False-21841]",
    ),
    Mutant(
        "topk-rest-underflows",
        "encodings/selection.py",
        "    low = np.flatnonzero(total < _LEAST)\n    if len(low):\n",
        "    low = np.flatnonzero(total < _LEAST)\n    if False:\n",
        "test_topk.py::test_a_rest_that_is_nearly_nothing_keeps_its_digits[float32]",
    ),
    Mutant(
        "topk-not-sorted-again",
        "encodings/topk.py",
        "    stored = round_to(wide, schema.dtype)\n",
        "    stored, ids = round_to(values, schema.dtype), rows.ids\n",
        "test_topk.py::test_rounding_makes_equal_numbers_which_are_sorted_again",
    ),
    Mutant(
        "topk-power-of-the-sum",
        "encodings/topk.py",
        "    if temperature not in known:\n",
        '    if temperature not in known:\n        return rows["residual"].astype(np.float64) / temperature\n    if temperature not in known:\n',
        "test_topk.py::test_whole_rows_never_surprise[.zarr]",
    ),
    Mutant(
        "topk-whole-unasked",
        "encodings/topk.py",
        '    if chosen == "coarse":\n',
        '    if chosen == "never":\n',
        "test_topk.py::test_whole_rows_never_surprise[.zarr]",
    ),
    Mutant(
        "topk-wide-unasked",
        "encodings/topk.py",
        "        if rule is None and schema.num_classes > _DENSE_CLASSES and not self.is_whole(schema):\n",
        "        if False:\n",
        "test_topk.py::test_whole_rows_never_surprise[.zarr]",
    ),
    Mutant(
        "topk-rest-unbounded",
        "encodings/topk_check.py",
        '    if not schema.encoding.get("derived"):\n',
        "    if False:\n",
        "test_topk.py::test_what_a_device_selected_is_checked",
    ),
    Mutant(
        "topk-parameters-as-they-come",
        "encodings/topk.py",
        "        if spec != given:\n",
        "        if False:\n",
        "test_topk.py::test_a_schema_whose_parameters_are_not_those_of_its_columns_is_refused",
    ),
    Mutant(
        "stack-of-two-encodings",
        "conversion/stacking.py",
        '("kind", "dtype", "temperature", "encoding", "columns")',
        '("kind", "dtype", "temperature", "columns")',
        "test_topk_verbs.py::test_members_parts_and_rows_of_several_stores",
    ),
    Mutant(
        "classes-that-are-not-known",
        "conversion/changes.py",
        "    if not encoding_of(schema).is_whole(schema):\n",
        "    if False:\n",
        "test_topk_verbs.py::test_what_cannot_be_made_is_refused_before_anything_is_written",
    ),
    Mutant(
        "topk-loss-masked",
        "torch/topk_loss.py",
        "x.mul_(scale).masked_fill_(scale == 0, 0)",
        "x.mul_(scale)",
        "test_topk_loss.py::test_padded_rows_with_a_mask_are_the_flat_rows_that_count[torch]",
    ),
    Mutant(
        "topk-loss-masked-jax",
        "jax/topk_loss.py",
        "jnp.where(scale == 0, 0, numbers * scale)",
        "(numbers * scale)",
        "test_topk_loss.py::test_padded_rows_with_a_mask_are_the_flat_rows_that_count[jax]",
    ),
    Mutant(
        "topk-loss-shares",
        "torch/topk_loss.py",
        "torch.where(left[rows] == -math.inf, 0, left[rows])",
        "z",
        "test_topk_loss.py::test_the_rest_of_a_confident_student_keeps_its_digits[torch-False]",
    ),
    Mutant(
        "topk-loss-derived",
        "torch/topk_loss.py",
        'if rule == "coarse" and topk.derived:',
        "if False:",
        "test_topk_loss.py::test_a_derived_residual_that_rounding_has_used_up_is_no_coarse_row",
    ),
    Mutant(
        "topk-loss-temperature",
        "pairing/distilling.py",
        'if not softened or chosen in ("renorm", "uniform"):',
        'if chosen != "bucket":',
        "test_topk_loss.py::test_what_does_not_fit_is_refused_by_name",
    ),
    Mutant(
        "select-minus-zero",
        "torch/topk.py",
        "(rows.float() + 0.0)",
        "(rows.float() * 1.0)",
        "test_topk_select.py::test_the_selection_is_that_of_a_stable_sort[torch_device-3-300-float32]",
    ),
    Mutant(
        "select-minus-zero-jax",
        "jax/topk.py",
        "jnp.where(rows == 0, 0, rows)",
        "rows",
        "test_topk_select.py::test_the_selection_is_that_of_a_stable_sort[jax_device-3-300-float32]",
    ),
    Mutant(
        "select-blocks-in-order",
        "torch/topk.py",
        "_first(maxima, k).sort(-1).values",
        "_first(maxima, k)",
        "test_topk_select.py::test_the_selection_is_that_of_a_stable_sort[torch_device-3-4099-float32]",
    ),
    Mutant(
        "select-blocks-in-order-jax",
        "jax/topk.py",
        "jnp.sort(_first(maxima, k), axis=-1)",
        "_first(maxima, k)",
        "test_topk_select.py::test_the_selection_is_that_of_a_stable_sort[jax_device-3-4099-float32]",
    ),
    Mutant(
        "labelled-rows-of-the-labels-themselves",
        "generate/tokens.py",
        "(named[:, 1:] != _UNLABELLED)",
        "(named[:, :-1] != _UNLABELLED)",
        "test_token_generation.py::test_rows_of_labelled_tokens_are_those_whose_next_token_has_a_label[numpy-.zarr]",
    ),
    Mutant(
        "tokens-padding-believed",
        "generate/models.py",
        "        if not close.all():\n",
        "        if False:\n",
        "test_token_generation.py::test_padding_that_changes_rows_is_refused[numpy-.zarr]",
    ),
    Mutant(
        "tokens-resumed-behind-the-last-sequence",
        "generate/by_token.py",
        "        first = self._sequence_of(written - 1) if written else 0\n",
        "        first = self._sequence_of(written - 1) + 1 if written else 0\n",
        "test_token_generation.py::test_a_store_that_stops_anywhere_goes_on_at_its_batch[numpy-False]",
    ),
    Mutant(
        "tokens-resumed-in-other-batches",
        "generate/by_token.py",
        "        elif isinstance(samples.batches, Sequential):\n",
        "        elif False:\n",
        "test_token_generation.py::test_batches_stay_those_that_a_store_was_begun_with[numpy-.zarr]",
    ),
    Mutant(
        "tokens-that-moved-not-seen",
        "generate/by_token.py",
        "                other = np.flatnonzero(then != now)\n",
        "                other = np.flatnonzero(then > now + 1000)\n",
        "test_token_generation.py::test_a_sequence_that_differs_is_named_with_its_token[numpy-.zarr]",
    ),
    Mutant(
        "encoded-after-halves",
        "generate/engine.py",
        "    columns = zip(*batches, strict=True)\n",
        "    columns = zip(batches[0], strict=True)\n",
        "test_encoded_generation.py::test_out_of_memory_halves_an_encoded_batch[torch-.zarr-True]",
    ),
    Mutant(
        "modules-collected-while-restored",
        "torch/modes.py",
        "before = list(self._before.values())",
        "before = self._before.values()",
        "test_modes.py::test_modules_may_be_collected_while_flags_are_restored",
    ),
    Mutant(
        "device-does-not-select",
        "generate/framework.py",
        "        asked = encoding_of(schema).selects(schema) if self.overlaps else None\n",
        "        asked = None\n",
        "test_encoded_generation.py::test_an_accelerator_hands_over_what_is_kept[torch]",
    ),
]


def tried(mutant: Mutant) -> str | None:
    """Why a break counts as not noticed; None where its test fails as it must."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis"
        )
        shutil.copytree(TOP, copy, ignore=ignored)
        path = copy / "fostore" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"its text is there {text.count(mutant.old)} times in {mutant.file}"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        given = {
            "PYTHONPATH": str(copy),
            "FOSTORE_POWER_CUTS": "150",
            "FOSTORE_FAULTS": "60",
            "CI": "1",
        }
        asked = ["-x", "-q", "-p", "no:cacheprovider", f"tests/{mutant.test}"]
        command = [sys.executable, "-m", "pytest", *asked]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env={**os.environ, **given},
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{mutant.test} did not end in {SECONDS} s"
        if done.returncode == 1:
            return None
        said = (
            "passes"
            if done.returncode == 0
            else f"ends with {done.returncode}: {done.stdout[-300:]}"
        )
        return f"{mutant.test} {said}"


def main() -> None:
    """Try all, or those that are named."""
    names = set(sys.argv[1:])
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    survived = 0
    with ThreadPoolExecutor(int(os.environ.get("WORKERS", "2"))) as pool:
        for mutant, why in zip(chosen, pool.map(tried, chosen), strict=True):
            survived += why is not None
            print(f"{mutant.name:30} {'caught' if why is None else 'SURVIVED: ' + why}", flush=True)
    print(f"{len(chosen)} breaks, {survived} survived")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
