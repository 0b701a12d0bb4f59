{{/*
What cannot work, each in a sentence with the value's name, all at once. The types are in
values.schema.json, which Helm reads first.
*/}}
{{- define "gatekey.refusals" -}}
{{- $values := .Values }}
{{- $wrong := list }}

{{- if include "gatekey.sqlite" . }}
{{- if gt (int64 (include "gatekey.replicas" .)) 1 }}
{{- $wrong = append $wrong (printf "replicaCount=%d cannot work with database.engine=sqlite: one process owns the file. Leave replicaCount unset, or use database.engine=postgres." (int64 $values.replicaCount)) }}
{{- end }}
{{- if $values.autoscaling.enabled }}
{{- $wrong = append $wrong "autoscaling.enabled=true cannot work with database.engine=sqlite: one process owns the file. Use database.engine=postgres." }}
{{- end }}
{{- if $values.database.existingSecret }}
{{- $wrong = append $wrong (printf "database.existingSecret=%s is not used with database.engine=sqlite. Unset it, or use database.engine=postgres." $values.database.existingSecret) }}
{{- end }}
{{- else if not $values.database.existingSecret }}
{{- $wrong = append $wrong (printf "database.existingSecret is not set, and PostgreSQL needs a URL. Make the Secret and name it:\n    kubectl -n %s create secret generic gatekey-database --from-literal=%s='postgres://user:password@host/database'\n    --set database.existingSecret=gatekey-database\n  or try it out with database.engine=sqlite." .Release.Namespace $values.database.key) }}
{{- end }}

{{- if not $values.tls.enabled }}
{{- if $values.tls.existingSecret }}
{{- $wrong = append $wrong (printf "tls.existingSecret=%s has no effect with tls.enabled=false, and the port would be plaintext. Set tls.enabled=true." $values.tls.existingSecret) }}
{{- end }}
{{- if $values.tls.clientCa.existingSecret }}
{{- $wrong = append $wrong (printf "tls.clientCa.existingSecret=%s has no effect with tls.enabled=false, and no certificate would be asked for. Set tls.enabled=true." $values.tls.clientCa.existingSecret) }}
{{- end }}
{{- end }}

{{- if and (not $values.pepper.enabled) $values.pepper.existingSecret }}
{{- $wrong = append $wrong (printf "pepper.existingSecret=%s has no effect with pepper.enabled=false. Unset one of them." $values.pepper.existingSecret) }}
{{- end }}

{{- range $name := list "lease" "maxConnectionAge" }}
{{- $value := get $values.config $name }}
{{- if not (regexMatch "^([0-9]+(ms|s|m|h))+$" $value) }}
{{- $wrong = append $wrong (printf "config.%s=%s cannot work: it must be a duration with its unit, such as 500ms, 10s or 15m." $name $value) }}
{{- end }}
{{- end }}

{{- $stop := add (int64 $values.preStopSeconds) (int64 $values.config.drainSeconds) }}
{{- if le (int64 (include "gatekey.gracePeriod" .)) (int64 $stop) }}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds=%d cannot work: the kubelet would kill calls that may still finish. It must be more than preStopSeconds + config.drainSeconds = %d; unset, it is." (int64 $values.terminationGracePeriodSeconds) (int64 $stop)) }}
{{- end }}

{{- if and $values.autoscaling.enabled (gt (int64 $values.autoscaling.minReplicas) (int64 $values.autoscaling.maxReplicas)) }}
{{- $wrong = append $wrong (printf "autoscaling.minReplicas=%d cannot work: it is more than autoscaling.maxReplicas=%d." (int64 $values.autoscaling.minReplicas) (int64 $values.autoscaling.maxReplicas)) }}
{{- end }}

{{- $ports := list (int64 $values.ports.grpc) (int64 $values.ports.health) (int64 $values.ports.metrics) }}
{{- if ne (len (uniq $ports)) 3 }}
{{- $wrong = append $wrong (printf "ports.grpc=%d, ports.health=%d, ports.metrics=%d cannot work: each must be a port of its own." (index $ports 0) (index $ports 1) (index $ports 2)) }}
{{- end }}

{{- range $values.extraEnv }}
{{- if hasPrefix "GATEKEY_" .name }}
{{- $wrong = append $wrong (printf "extraEnv sets %s, which the chart sets itself. Use its value, under config or beside it." .name) }}
{{- end }}
{{- end }}

{{- if and $values.serviceMonitor.enabled (not $values.metrics.enabled) }}
{{- $wrong = append $wrong "serviceMonitor.enabled=true cannot work with metrics.enabled=false: there is nothing to scrape." }}
{{- end }}
{{- if and $values.prometheusRule.enabled (not (.Files.Get "files/rules.yaml")) }}
{{- $wrong = append $wrong "prometheusRule.enabled=true cannot work: this copy of the chart has no files/rules.yaml." }}
{{- end }}
{{- if and $values.dashboard.enabled (not (.Files.Get "files/dashboard.json")) }}
{{- $wrong = append $wrong "dashboard.enabled=true cannot work: this copy of the chart has no files/dashboard.json." }}
{{- end }}

{{- if $wrong }}
{{- fail (printf "\n\ngatekey cannot be deployed with these values:\n- %s\n" (join "\n- " $wrong)) }}
{{- end }}
{{- end }}
